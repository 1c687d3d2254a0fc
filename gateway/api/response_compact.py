"""The door of /v1/responses/compact: a conversation in, a shorter one out; nothing of it is stored."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import compaction
from gateway.api.response_input import CreateResponse, parse_create, parse_input
from gateway.api.response_order import Orders
from gateway.api.response_output import render_item, usage_of
from gateway.api.shapes import json_response
from gateway.auth import Principal, Scope
from gateway.auth.authenticator import Authenticator
from gateway.auth.seal import seal
from gateway.body import parse_json
from gateway.context import check_outputs
from gateway.conversations import Conversations, Item, Json, item_id
from gateway.conversations.ids import new_shelf
from gateway.errors import BadRequest, EngineError, UnknownParameter
from gateway.events import Finished
from gateway.live import LiveTurn
from gateway.quotas.telling import limit_headers
from gateway.runner import Order, Runner
from gateway.sse import unless_left

_FIELDS = frozenset({
    "model", "input", "previous_response_id", "instructions", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "service_tier",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompactDoor:
    auth: Authenticator
    orders: Orders
    store: Conversations
    runner: Runner

    async def compact(self, request: Request) -> Response:
        principal = await self.auth.requires(Scope.CHAT)(request)
        create = _parse(parse_json(await request.body()))
        self.orders.check_model(create)
        context = await self._context(principal, create)
        turn = await self._begin(principal, create, context)
        try:
            outcome = await unless_left(request.receive, turn.ended())
        finally:
            turn.stop_if_alone()
        if outcome is None:
            return Response(status_code=499)
        if outcome.status in ("failed", "cancelled") or not turn.said.text:
            message = outcome.message or "The model wrote no summary; ask again."
            raise turn.refusal or EngineError(message, code=outcome.code)
        content = compaction.encode(compaction.compact(context, turn.said.text))
        sealed = {"type": "compaction", "encrypted_content": seal(self.orders.secrets, principal.user, content)}
        return json_response(
            _object(turn.id, [*compaction.kept(context), sealed], outcome), limit_headers(turn.balance)
        )

    async def _context(self, principal: Principal, create: CreateResponse) -> Sequence[Json]:
        """What is to be made short: what came before, and the input."""
        before = await self.store.history(principal.user, None, create.previous_response_id)
        asked = parse_input(create.input, references=True) if create.input or not before else []
        context = [*(item.body for item in before), *await self.orders.resolved(principal, asked)]
        check_outputs(context, len(before))
        return context

    async def _begin(self, principal: Principal, create: CreateResponse, context: Sequence[Json]) -> LiveTurn:
        """The summary is a turn like any other: it waits for its seat, and is counted."""
        request = self.orders.turn_request(principal, create, compaction.question(context))
        turn = await self.runner.begin(Order(request, None, background=False))
        assert isinstance(turn, LiveTurn)  # noqa: S101 - what is not stored attaches to nothing
        return turn


def router(door: CompactDoor) -> APIRouter:
    routes = APIRouter()
    routes.add_route("/v1/responses/compact", door.compact, methods=["POST"])
    return routes


def _parse(body: Mapping[str, Any]) -> CreateResponse:
    for name in body:
        if name not in _FIELDS:
            raise UnknownParameter(f"Unknown parameter: `{name}`.", param=name)
    if body.get("model") is None:
        raise BadRequest("`model` is required.", code="missing_required_parameter", param="model")
    return parse_create({**body, "store": False, "temperature": 0, "reasoning": {"effort": "none"}})


def _object(id: str, output: Sequence[Json], outcome: Finished) -> dict[str, Any]:
    shelf = new_shelf()
    items = [Item(item_id(body, shelf, number), body) for number, body in enumerate(output, 1)]
    return {
        "id": id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [render_item(item) for item in items],
        "usage": usage_of(outcome),
    }
