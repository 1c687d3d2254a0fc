"""The door of /v1/responses: translates between HTTP and turns; decides nothing about them."""

import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.response_input import (
    CreateResponse,
    check_model,
    parse_create,
    parse_input,
    question_of,
)
from gateway.api.response_output import Echo, StreamRenderer, decode_echo, encode_echo, render_item, stored_object
from gateway.api.shapes import if_match, integer, json_response, page, paging
from gateway.auth import Principal, Scope
from gateway.auth.authenticator import Authenticator
from gateway.auth.secret import Secrets
from gateway.body import parse_json
from gateway.conversations import Attached, Begin, Conversations, Json, StoredResponse
from gateway.conversations.ids import new_id, new_shelf
from gateway.engine import Defaults, Engine
from gateway.errors import BadRequest, Draining, NotFound
from gateway.events import Finished, Sampling, TurnEvent
from gateway.live import LiveTurn
from gateway.prompt import Window, title_of
from gateway.runner import Order, Runner
from gateway.settings import Settings
from gateway.sse import DONE, HEARTBEAT, EventStream, unless_left
from gateway.turn import TurnRequest, build_prompt

RETRY_SECONDS = 600  # how long the official SDK's retries are recognised by their body
KEY_SECONDS = 86_400
ELSEWHERE = "The gateway is stopping; the answer goes on elsewhere. Ask for it again in a moment."


@dataclass(frozen=True, slots=True)
class ResponsesDoor:
    """The parts this door needs, and what its routes share."""

    auth: Authenticator
    secrets: Secrets
    store: Conversations
    runner: Runner
    engine: Engine
    settings: Settings

    async def create(self, request: Request) -> Response | EventStream:
        principal = await self.auth.requires(Scope.CHAT)(request)
        raw = await request.body()
        create = parse_create(parse_json(raw))
        order, echo = await self._order(principal, create, request, raw)
        turn = await self.runner.begin(order)
        if isinstance(turn, Attached):
            return await self._attach(principal, turn, create, request)
        shelf, first = (turn.begun.shelf, turn.begun.first_output) if turn.begun else (new_shelf(), 1)
        renderer = StreamRenderer(turn.id, echo, shelf, first)
        if create.stream:
            return EventStream(_stream(renderer, self.runner.show(turn)), on_end=turn.stop_if_alone)
        if create.background:
            return json_response(stored_object(await self.store.response(principal.user, turn.id)))
        return await self._whole(request, renderer, turn)

    async def _whole(self, request: Request, renderer: StreamRenderer, turn: LiveTurn) -> Response:
        """A response that is not streamed: the caller waits for its end; when they leave, the turn ends."""
        try:
            outcome = await unless_left(request.receive, _last(renderer, self.runner.show(turn)))
        finally:
            turn.stop_if_alone()
        return json_response(renderer.result(outcome)) if outcome else Response(status_code=499)

    async def _attach(
        self, principal: Principal, attached: Attached, create: CreateResponse, request: Request
    ) -> Response | EventStream:
        """The same post once more: show the turn it began."""
        if create.stream:
            return await self._replay(principal, attached.turn, -1)
        if not create.background:
            await unless_left(request.receive, _exhaust(self.runner.follow(principal.user, attached.turn)))
        return json_response(stored_object(await self.store.response(principal.user, attached.turn)))

    async def get(self, request: Request) -> Response | EventStream:
        id = request.path_params["id"]
        principal = await self.auth.requires(Scope.CHAT)(request)
        query = request.query_params
        if query.get("stream") == "true":
            return await self._replay(principal, id, integer(query.get("starting_after"), "starting_after", -1))
        return json_response(stored_object(await self._stored(principal, id)))

    async def _replay(self, principal: Principal, id: str, after: int) -> EventStream:
        stored = await self._stored(principal, id)
        renderer = StreamRenderer(id, decode_echo(stored.request), stored.shelf, stored.first_output)
        return EventStream(_stream(renderer, self.runner.follow(principal.user, id), after))

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
        question = parse_input(create.input) if create.input else []
        history: Sequence[Json] = []
        if create.conversation_id or create.previous_response_id:
            stored = await self.store.history(principal.user, create.conversation_id, create.previous_response_id)
            history = [item.body for item in stored]
        turn = self._turn_request(principal, create, [*history, *question])
        prompt = await build_prompt(turn, self.engine, count=True)
        return json_response({"object": "response.input_tokens", "input_tokens": prompt.tokens})

    async def _stored(self, principal: Principal, id: str) -> StoredResponse:
        try:
            return await self.store.response(principal.user, id)
        except NotFound:
            raise NotFound(f"There is no response `{id[:80]}`.", param="id") from None

    async def _order(
        self, principal: Principal, create: CreateResponse, request: Request, raw: bytes
    ) -> tuple[Order, Echo]:
        model = self.engine.model
        check_model(create.model, model.id if model else None, self.settings.model_aliases)
        items = parse_input(create.input)
        context: Sequence[Json] = items
        if not create.is_stored and create.previous_response_id:
            before = await self.store.history(principal.user, None, create.previous_response_id)
            context = [*(item.body for item in before), *items]
        turn = self._turn_request(principal, create, context)
        echo = _echo(create, turn, int(time.time()))
        begin = self._begin(principal, create, turn, echo, items, request, raw) if create.is_stored else None
        return Order(turn, begin, background=bool(create.background)), echo

    def _turn_request(self, principal: Principal, create: CreateResponse, items: Sequence[Json]) -> TurnRequest:
        model = self.engine.model
        return TurnRequest(
            id=new_id("resp"),
            person=principal.user,
            cache_salt=self.secrets.cache_salt(principal.user),
            model=model.id if model else "",
            system=self.settings.system_prompt if create.instructions is None else create.instructions,
            items=items,
            window=Window(create.window_rounds(), truncate=create.truncation == "auto"),
            sampling=_sampling(create, self.engine.defaults),
        )

    def _begin(
        self,
        principal: Principal,
        create: CreateResponse,
        turn: TurnRequest,
        echo: Echo,
        items: Sequence[Json],
        request: Request,
        raw: bytes,
    ) -> Begin:
        key, seconds, attach = _repeat_key(request, raw)
        return Begin(
            owner=principal.user,
            turn=turn.id,
            created_at=echo.created_at,
            input=items,
            request=encode_echo(echo),
            conversation=create.conversation_id,
            previous=create.previous_response_id,
            expected_version=if_match(request),
            key=key,
            digest=hashlib.sha256(raw).hexdigest(),
            key_seconds=seconds,
            attach=attach,
            title=title_of(question_of(items)),
            holder=self.runner.holder,
        )


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


async def _stream(
    renderer: StreamRenderer, steps: AsyncGenerator[Sequence[TurnEvent], None], after: int = -1
) -> AsyncGenerator[bytes, None]:
    """Server-sent events with a sequence number above `after`; what came together is sent together."""
    head = b"".join(renderer.begin())
    if after < 0:
        yield head
    ended = False
    async with aclosing(steps):
        async for events in steps:
            ended = bool(events) and isinstance(events[-1], Finished)
            data = []
            for happened in events:
                for rendered in renderer.feed(happened):
                    if renderer.count - 1 > after:
                        data.append(rendered)
            if data:
                yield b"".join(data)
            elif not events:
                yield HEARTBEAT
    if not ended:  # broken off, so that nobody takes it for the whole answer; another gateway goes on with it
        raise Draining(ELSEWHERE)
    yield DONE


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


def _sampling(create: CreateResponse, defaults: Defaults) -> Sampling:
    def given(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return Sampling(
        max_tokens=given(create.max_output_tokens, defaults.max_tokens),
        temperature=given(create.temperature, defaults.temperature),
        top_p=given(create.top_p, defaults.top_p),
        repetition_penalty=given(create.repetition_penalty, defaults.repetition_penalty),
        extra=create.sampling_extra(),
    )


def _echo(create: CreateResponse, turn: TurnRequest, created_at: int) -> Echo:
    return Echo(
        model=turn.model,
        temperature=turn.sampling.temperature,
        top_p=turn.sampling.top_p,
        max_output_tokens=turn.sampling.max_tokens,
        instructions=create.instructions,
        truncation=create.truncation or "disabled",
        background=bool(create.background),
        store=create.is_stored,
        parallel_tool_calls=create.parallel_tool_calls is not False,
        presence_penalty=create.presence_penalty or 0.0,
        frequency_penalty=create.frequency_penalty or 0.0,
        metadata=create.metadata or {},
        safety_identifier=create.safety_identifier,
        prompt_cache_key=create.prompt_cache_key,
        conversation=create.conversation_id,
        previous=create.previous_response_id,
        created_at=created_at,
    )


def _repeat_key(request: Request, raw: bytes) -> tuple[str, int, bool]:
    """The key that recognises this post when it comes again, for how long, and whether this one may be a repeat.

    The official SDK sends no key, but counts its retries: those are recognised by their body.
    """
    if key := request.headers.get("idempotency-key"):
        if len(key) > 255:
            raise BadRequest("`Idempotency-Key` may have up to 255 characters.")
        return f"key:{hashlib.sha256(key.encode()).hexdigest()}", KEY_SECONDS, True
    retries = integer(request.headers.get("x-stainless-retry-count"), "x-stainless-retry-count", 0)
    return f"body:{hashlib.sha256(raw).hexdigest()}", RETRY_SECONDS, retries > 0
