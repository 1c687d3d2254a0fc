"""The door of Anthropic's Messages: the same relay, Anthropic's shapes. Translates, decides nothing."""

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import relay_body
from gateway.api.relayed import RelayDoor, ignored_header, request_id
from gateway.relay import MESSAGES, RelayResponse


def router(door: RelayDoor) -> APIRouter:
    async def messages(request: Request) -> RelayResponse:
        return await door.relayed(request, relay_body.messages, MESSAGES)

    async def count_tokens(request: Request) -> Response:
        _, made = await door.read(request, relay_body.count_tokens)
        body = msgspec.json.encode(made.fields)
        answer = await door.relay.ask("/v1/messages/count_tokens", body, request_id(request))
        return Response(answer, headers=ignored_header(made), media_type="application/json")

    routes = APIRouter()
    routes.add_route("/v1/messages", messages, methods=["POST"])  # type: ignore[arg-type]
    routes.add_route("/v1/messages/count_tokens", count_tokens, methods=["POST"])
    return routes
