"""The door of /v1/responses: translates between HTTP and turns; decides nothing about them."""

import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.response_input import CreateResponse, parse_create, parse_input
from gateway.api.response_order import Orders, Repeat, named, renderer_of
from gateway.api.response_output import StreamRenderer, decode_echo, render_item, stored_object
from gateway.api.shapes import if_match, integer, json_response, page, paging
from gateway.auth import Principal, Scope
from gateway.auth.authenticator import Authenticator
from gateway.body import parse_json
from gateway.context import build_prompt, check_outputs
from gateway.conversations import Attached, Conversations, Json, StoredResponse
from gateway.engine import Engine
from gateway.errors import BadRequest, Draining, NotFound
from gateway.events import Finished, Form, TurnEvent
from gateway.live import LiveTurn
from gateway.quotas.telling import limit_headers
from gateway.runner import Runner
from gateway.sse import DONE, EXTENSION, HEARTBEAT, EventStream, unless_left
from gateway.waited import headers_of

RETRY_SECONDS = 600  # how long the official SDK's retries are recognised by their body
KEY_SECONDS = 86_400
ELSEWHERE = "The gateway is stopping; the answer goes on elsewhere. Ask for it again in a moment."


@dataclass(frozen=True, slots=True)
class ResponsesDoor:
    """The parts this door needs, and what its routes share."""

    auth: Authenticator
    orders: Orders
    store: Conversations
    runner: Runner
    engine: Engine

    async def create(self, request: Request) -> Response | EventStream:
        principal = await self.auth.requires(Scope.CHAT)(request)
        raw = await request.body()
        create = parse_create(parse_json(raw))
        order, echo = await self.orders.order(
            principal, create, repeat=_repeat(request, raw), expected_version=if_match(request)
        )
        turn = await self.runner.begin(order)
        if isinstance(turn, Attached):
            return await self._attach(principal, turn, create, request)
        renderer = renderer_of(turn, echo)
        if create.stream:
            steps = self.runner.show(turn)
            events = stream(renderer, steps, extended=_reads_more(request))
            return EventStream(events, limit_headers(turn.balance), on_end=turn.stop_if_alone)
        if create.background:
            stored = await self.store.response(principal.user, turn.id)
            return json_response(stored_object(stored), limit_headers(turn.balance))
        return await self._whole(request, renderer, turn, order.request.form)

    async def _whole(self, request: Request, renderer: StreamRenderer, turn: LiveTurn, form: Form) -> Response:
        """A response that is not streamed: the caller waits for its end; when they leave, the turn ends.

        Raises BadRequest where it was the request that the engine could not take."""
        try:
            outcome = await unless_left(request.receive, _last(renderer, self.runner.show(turn)))
        finally:
            turn.stop_if_alone()
        if isinstance(turn.refusal, BadRequest):
            raise named(turn.refusal, form)
        if outcome is None:
            return Response(status_code=499)
        timing = outcome.timing
        waited = headers_of(renderer.place, queued=timing.queued, prefill=timing.prefill, decode=timing.decode)
        return json_response(renderer.result(outcome), waited | limit_headers(turn.balance))

    async def _attach(
        self, principal: Principal, attached: Attached, create: CreateResponse, request: Request
    ) -> Response | EventStream:
        """The same post once more: show the turn it began."""
        if create.stream:
            return await self._replay(principal, attached.turn, request)
        if not create.background:
            await unless_left(request.receive, _exhaust(self.runner.follow(principal.user, attached.turn)))
        return json_response(stored_object(await self.store.response(principal.user, attached.turn)))

    async def get(self, request: Request) -> Response | EventStream:
        id = request.path_params["id"]
        principal = await self.auth.requires(Scope.CHAT)(request)
        query = request.query_params
        if query.get("stream") == "true":
            after = integer(query.get("starting_after"), "starting_after", -1)
            return await self._replay(principal, id, request, after)
        return json_response(stored_object(await self._stored(principal, id)))

    async def _replay(self, principal: Principal, id: str, request: Request, after: int = -1) -> EventStream:
        stored = await self._stored(principal, id)
        renderer = StreamRenderer(id, decode_echo(stored.request), stored.shelf, stored.first_output)
        steps = self.runner.follow(principal.user, id)
        return EventStream(stream(renderer, steps, after, extended=_reads_more(request)))

    async def cancel(self, request: Request) -> Response:
        id = request.path_params["id"]
        principal = await self.auth.requires(Scope.CHAT)(request)
        await self._stored(principal, id)
        return json_response(stored_object(await self.runner.cancel(principal.user, id)))

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        principal = await self.auth.requires(Scope.CHAT)(request)
        await self._stored(principal, id)
        await self.store.delete_response(principal.user, id)
        return json_response({"id": id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        id = request.path_params["id"]
        principal = await self.auth.requires(Scope.CHAT)(request)
        stored = await self._stored(principal, id)
        limit, order, after = paging(request)
        items = [render_item(item) for item in stored.input]
        if order == "desc":
            items.reverse()
        begin = next((index + 1 for index, item in enumerate(items) if item["id"] == after), 0)
        return json_response(page(items[begin : begin + limit], len(items) > begin + limit))

    async def input_tokens(self, request: Request) -> Response:
        """Count what a prompt would be: the whole context, cut as the turn would cut it."""
        principal = await self.auth.requires(Scope.CHAT)(request)
        create = parse_create(parse_json(await request.body()))
        asked = parse_input(create.input, references=True) if create.input else []
        question = await self.orders.resolved(principal, asked)
        history: Sequence[Json] = []
        if create.conversation_id or create.previous_response_id:
            stored = await self.store.history(principal.user, create.conversation_id, create.previous_response_id)
            history = [item.body for item in stored]
        check_outputs([*history, *question], len(history))
        turn = self.orders.turn_request(principal, create, [*history, *question])
        prompt = await build_prompt(turn, self.engine, count=True)
        return json_response({"object": "response.input_tokens", "input_tokens": prompt.tokens})

    async def _stored(self, principal: Principal, id: str) -> StoredResponse:
        try:
            return await self.store.response(principal.user, id)
        except NotFound:
            raise NotFound(f"There is no response `{id[:80]}`.", param="id") from None


def router(door: ResponsesDoor) -> APIRouter:
    routes = APIRouter()
    # Plain routes: what they return is an ASGI response already, and nothing of theirs is validated twice.
    routes.add_route("/v1/responses", door.create, methods=["POST"])  # type: ignore[arg-type]
    routes.add_route("/v1/responses/input_tokens", door.input_tokens, methods=["POST"])
    routes.add_route("/v1/responses/{id}", door.get, methods=["GET"])  # type: ignore[arg-type]
    routes.add_route("/v1/responses/{id}", door.delete, methods=["DELETE"])
    routes.add_route("/v1/responses/{id}/cancel", door.cancel, methods=["POST"])
    routes.add_route("/v1/responses/{id}/input_items", door.input_items, methods=["GET"])
    return routes


async def stream(
    renderer: StreamRenderer, steps: AsyncGenerator[Sequence[TurnEvent], None], after: int = -1, extended: bool = True
) -> AsyncGenerator[bytes, None]:
    """Server-sent events with a sequence number above `after`; what came together is sent together.

    Not `extended`: without those that are ours alone. Their numbers are left out.
    """
    head = b"".join(renderer.begin())
    if after < 0:
        yield head
    del head  # nor what follows: thousands may wait with what they have sent long ago
    ended = False
    async with aclosing(steps):
        async for events in steps:
            ended = bool(events) and isinstance(events[-1], Finished)
            if data := b"".join(_fed(renderer, events, after, extended)):
                yield data
            elif not events:
                yield HEARTBEAT
            del data
    if not ended:  # broken off, so that nobody takes it for the whole answer; another gateway goes on with it
        raise Draining(ELSEWHERE)
    yield DONE


def _fed(renderer: StreamRenderer, events: Sequence[TurnEvent], after: int, extended: bool) -> Iterator[bytes]:
    for happened in events:
        for rendered in renderer.feed(happened):
            if renderer.count - 1 > after and (extended or not rendered.startswith(EXTENSION)):
                yield rendered


async def _last(renderer: StreamRenderer, steps: AsyncGenerator[Sequence[TurnEvent], None]) -> Finished:
    """Feed the renderer to the end of the turn."""
    async with aclosing(steps):
        async for events in steps:
            for happened in events:
                for _ in renderer.feed(happened):
                    pass
                if isinstance(happened, Finished):
                    return happened
    raise Draining(ELSEWHERE)


async def _exhaust(steps: AsyncGenerator[Sequence[TurnEvent], None]) -> None:
    async with aclosing(steps):
        async for _ in steps:
            pass


def _reads_more(request: Request) -> bool:
    """Whether the caller reads on after an event that is not OpenAI's: the helper of their JavaScript SDK does not."""
    return request.headers.get("x-stainless-lang") != "js"


def _repeat(request: Request, raw: bytes) -> Repeat:
    """How this post is recognised when it comes again.

    The official SDK sends no key, but counts its retries: those are recognised by their body.
    """
    digest = hashlib.sha256(raw).hexdigest()
    if key := request.headers.get("idempotency-key"):
        if len(key) > 255:
            raise BadRequest("`Idempotency-Key` may have up to 255 characters.")
        return Repeat(f"key:{hashlib.sha256(key.encode()).hexdigest()}", digest, KEY_SECONDS, attach=True)
    retries = integer(request.headers.get("x-stainless-retry-count"), "x-stainless-retry-count", 0)
    return Repeat(f"body:{digest}", digest, RETRY_SECONDS, attach=retries > 0)
