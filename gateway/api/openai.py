"""The door of OpenAI's stateless routes: models, chat completions, completions. Translates, decides nothing."""

from datetime import UTC, datetime
from typing import Any, NoReturn

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import relay_body
from gateway.api.relayed import RelayDoor
from gateway.api.shapes import json_response, page
from gateway.engine import ModelFacts
from gateway.errors import NotFound
from gateway.relay import CHAT, COMPLETION, RelayResponse

_NOT_HERE = (
    "/v1/embeddings",
    "/v1/files",
    "/v1/files/{rest:path}",
    "/v1/vector_stores",
    "/v1/vector_stores/{rest:path}",
    "/v1/chat/completions",  # the list of stored ones; POST is ours
    "/v1/chat/completions/{rest:path}",
)


def router(door: RelayDoor) -> APIRouter:
    async def models(request: Request) -> Response:
        await door.may_look(request)
        model = door.engine.model
        return json_response(page([_card(model, door.engine.since)] if model else [], False))

    async def model(request: Request) -> Response:
        await door.may_look(request)
        asked = request.path_params["id"]
        known = door.engine.model
        if known is None or (asked != known.id and asked not in door.settings.model_aliases):
            raise NotFound(f"There is no model '{asked[:80]}' here.", code="model_not_found", param="model")
        return json_response(_card(known, door.engine.since))

    async def chat(request: Request) -> RelayResponse:
        return await door.relayed(request, relay_body.chat, CHAT)

    async def completion(request: Request) -> RelayResponse:
        return await door.relayed(request, relay_body.completion, COMPLETION)

    async def not_here(request: Request) -> NoReturn:
        await door.principal(request)
        path = request.url.path
        raise NotFound(f"{request.method} {path[:80]} does not exist on this server.", code="unsupported_endpoint")

    routes = APIRouter()
    # Plain routes: FastAPI's own would resolve parameters and validate what these pass on untouched.
    routes.add_route("/v1/models", models, methods=["GET"])
    routes.add_route("/v1/models/{id:path}", model, methods=["GET"])
    routes.add_route("/v1/chat/completions", chat, methods=["POST"])  # type: ignore[arg-type]
    routes.add_route("/v1/completions", completion, methods=["POST"])  # type: ignore[arg-type]
    for path in _NOT_HERE:
        routes.add_route(path, not_here, methods=["GET", "POST", "DELETE"])
    return routes


def _card(model: ModelFacts, since: float) -> dict[str, Any]:
    """What OpenAI's clients read, what Anthropic's read, and what only ours do."""
    defaults = model.defaults
    return {
        "id": model.id,
        "object": "model",
        "created": int(since),
        "owned_by": "deskmate",
        "type": "model",
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(int(since), UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens,
        "max_model_len": model.context_tokens,
        "deskmate:demo": model.demo,
        "deskmate:defaults": {
            "max_output_tokens": defaults.max_tokens,
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "repetition_penalty": defaults.repetition_penalty,
        },
    }
