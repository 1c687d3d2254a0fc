"""The WebSocket door of /v1/responses: turns one after the other on one connection; decides nothing about them.

    the client   {"type": "response.create", …}            the fields of POST /v1/responses
                 {"type": "response.cancel"}                the answer being written ends; `response_id` may name it
    the server   the events of the stream, one a message; {"type": "error", "status": …, "error": {…}}

Messages are answered in their order: by a response's events to its last, or by one error, after which the connection
lives on. Only a cancel counts at once. What is not stored is remembered as long as the connection lives (`Memory`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from gateway.api.response_input import CreateResponse, parse_create
from gateway.api.response_memory import Memory
from gateway.api.response_order import Orders, renderer_of
from gateway.api.response_output import Echo, StreamRenderer, response_object
from gateway.api.responses import stream
from gateway.auth import Principal
from gateway.auth import Scope as Permission
from gateway.auth.authenticator import Authenticator
from gateway.body import checked, parse_json
from gateway.context import build_prompt
from gateway.conversations import Attached
from gateway.conversations.ids import new_shelf
from gateway.engine import Engine
from gateway.errors import BadRequest, Busy, Draining, NotFound, Refusal, UnsupportedParameter
from gateway.events import Finished
from gateway.live import LiveTurn
from gateway.runner import Order, Runner
from gateway.sse import payloads

MOST_PER_PERSON = 32  # connections
MOST_AHEAD = 8  # messages that wait for their answer
# Fields of HTTP that say nothing here: each with the values that ask for what happens anyway.
_OF_HTTP: Mapping[str, tuple[Any, ...]] = {
    "stream": (None, True),
    "stream_options": (None,),
    "background": (None, False),
}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why a connection is closed by us: after the answer under way, with an error event where there is a `refusal`."""

    code: int
    reason: str
    refusal: Refusal | None = None


_STOPPING = Goodbye(1001, "The gateway is stopping; connect again.")
_TOO_OLD = Goodbye(
    1000,
    "The connection has lived for as long as it may.",
    BadRequest(
        "This connection has lived for as long as it may (setting DESKMATE_SOCKET_SECONDS); connect again.",
        code="websocket_connection_limit_reached",
    ),
)
_TOO_FAST = Goodbye(
    1008,
    "Too much was sent ahead of its answers.",
    BadRequest("Too much was sent ahead of its answers; wait for a response's last event.", code="too_many_messages"),
)


class SocketDoor:
    """The parts this door needs; an ASGI application. `refused` is told of every error event."""

    def __init__(
        self,
        auth: Authenticator,
        orders: Orders,
        runner: Runner,
        engine: Engine,
        *,
        most_seconds: float,
        most_bytes: int,
        refused: Callable[[Refusal], None],
    ) -> None:
        self.orders = orders
        self.runner = runner
        self.engine = engine
        self.most_bytes = most_bytes
        self.refused = refused
        self._requires = auth.requires(Permission.CHAT)
        self._most_seconds = most_seconds
        self._open: set[_Connection] = set()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = await self._requires(HTTPConnection(scope))
        if self._draining:
            raise Draining("The gateway is stopping; connect again in a moment.")
        if sum(one.principal.user == principal.user for one in self._open) >= MOST_PER_PERSON:
            message = f"There are {MOST_PER_PERSON} WebSockets of yours already; close one."
            raise Busy(message, code="too_many_connections", retry_after_seconds=5)
        connection = _Connection(self, principal, receive, send)
        self._open.add(connection)
        limit = asyncio.get_running_loop().call_later(self._most_seconds, connection.leave, _TOO_OLD)
        try:
            await connection.run()
        finally:
            limit.cancel()
            self._open.discard(connection)

    def drain(self) -> None:
        """Close every connection once it has told the answer under way."""
        self._draining = True
        for connection in self._open:
            connection.leave(_STOPPING)


def router(door: SocketDoor) -> APIRouter:
    routes = APIRouter()
    routes.routes.append(WebSocketRoute("/v1/responses", door))
    return routes


class _Connection:
    def __init__(self, door: SocketDoor, principal: Principal, receive: Receive, send: Send) -> None:
        self.principal = principal
        self._door = door
        self._receive = receive
        self._send = send
        self._memory = Memory()
        self._heard: asyncio.Queue[tuple[Mapping[str, Any] | Refusal, int] | None] = asyncio.Queue()
        self._bytes_ahead = 0
        self._asked = 0  # responses asked for and not told to their end
        self._turn: LiveTurn | None = None
        self._cancelled = False
        self._goodbye: Goodbye | None = None

    async def run(self) -> None:
        """Until the client has left, or we have said goodbye. What is being answered then ends, as over HTTP."""
        await self._receive()
        await self._send({"type": "websocket.accept"})
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._answer_all())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.wait((reader, writer))
        if not writer.cancelled():
            writer.result()  # an error of ours goes up to the one place that counts it

    def leave(self, goodbye: Goodbye) -> None:
        """Answer nothing more than what is being answered, then close."""
        self._goodbye = self._goodbye or goodbye
        self._heard.put_nowait(None)

    # hearing --------------------------------------------------------------------------------------------------------
    async def _read(self) -> None:
        """Return when the client has left."""
        while (message := await self._receive())["type"] == "websocket.receive":
            try:
                self._hear(message)
            except Refusal as refusal:
                self._put(refusal, 0)

    def _hear(self, message: Message) -> None:
        text = message.get("text")
        if text is None:
            raise BadRequest("A message is JSON as text; binary ones are not understood.", code="invalid_json")
        raw = text.encode()
        body = parse_json(raw)
        match body.get("type"):
            case "response.create":
                self._asked += self._put(body, len(raw))
            case "response.cancel":
                self._cancel(checked(body, optional={"type": str, "response_id": str}).get("response_id"))
            case _:
                raise BadRequest("`type` is one of response.create, response.cancel.", param="type")

    def _put(self, heard: Mapping[str, Any] | Refusal, size: int) -> bool:
        """Whether it will be answered."""
        if self._heard.qsize() >= MOST_AHEAD or self._bytes_ahead + size > self._door.most_bytes:
            self.leave(_TOO_FAST)
        if self._goodbye is None:
            self._bytes_ahead += size
            self._heard.put_nowait((heard, size))
        return self._goodbye is None

    def _cancel(self, response: str | None) -> None:
        """End the answer under way, or the next one, when it has not begun."""
        is_it = response is None or (self._turn is not None and self._turn.id == response)
        if not is_it or not self._asked:
            raise NotFound("No such response is being written on this connection.", param="response_id")
        self._cancelled = True
        if self._turn is not None:
            self._turn.stop()

    # answering ------------------------------------------------------------------------------------------------------
    async def _answer_all(self) -> None:
        while (next := await self._heard.get()) is not None and self._goodbye is None:
            heard, size = next
            self._bytes_ahead -= size
            try:
                if isinstance(heard, Refusal):
                    raise heard
                await self._answer(heard)
            except Refusal as refusal:
                await self._refuse(refusal)
        await self._close(self._goodbye or _STOPPING)

    async def _answer(self, body: Mapping[str, Any]) -> None:
        try:
            await self._create(body)
        except Refusal:
            if isinstance(previous := body.get("previous_response_id"), str):
                self._memory.forget(previous)  # a chain that failed once is begun anew, as at OpenAI
            raise
        finally:
            self._asked -= 1
            self._cancelled = False
            self._turn = None

    async def _create(self, body: Mapping[str, Any]) -> None:
        create, generate = _parse(body)
        before = self._memory.get(create.previous_response_id)
        if before is not None and create.is_stored:
            raise BadRequest("The previous response was not stored; go on with `store: false`.", param="store")
        order, echo = await self._door.orders.order(self.principal, create, before=before)
        if not generate:
            await self._prepare(create, order, echo)
            return
        turn = self._turn = await self._begin(order)
        if self._cancelled:
            turn.stop()
        try:
            await self._tell(turn, renderer_of(turn, echo))
        finally:
            turn.stop_if_alone()
        self._remember(create, order, turn)

    async def _begin(self, order: Order) -> LiveTurn:
        beginning = asyncio.create_task(self._door.runner.begin(order))
        try:
            turn = await asyncio.shield(beginning)
        except asyncio.CancelledError:  # left meanwhile: begin it whole, so that it can be ended
            beginning.add_done_callback(_end_unheard)
            raise
        assert isinstance(turn, LiveTurn)  # noqa: S101 - an order without a key attaches to nothing
        return turn

    async def _tell(self, turn: LiveTurn, renderer: StreamRenderer) -> None:
        async with aclosing(stream(renderer, self._door.runner.show(turn))) as written:
            async for data in written:
                for payload in payloads(data):
                    await self._send_text(payload)

    def _remember(self, create: CreateResponse, order: Order, turn: LiveTurn) -> None:
        if create.is_stored or turn.outcome is None:
            return
        if turn.outcome.status == "failed":
            self._memory.forget(create.previous_response_id)
        else:
            output = turn.said.output(turn.outcome.status == "completed")
            self._memory.keep(turn.id, [*order.request.items, *output])

    async def _prepare(self, create: CreateResponse, order: Order, echo: Echo) -> None:
        """A warm-up: the input is remembered under a response's id, the engine is not asked."""
        if create.is_stored:
            raise UnsupportedParameter("`generate: false` goes with `store: false` only.", param="generate")
        await build_prompt(order.request, self._door.engine)  # refuses what would be refused later
        id, outcome = order.request.id, Finished("completed", completed_at=int(time.time()))
        self._memory.keep(id, order.request.items)
        for created in StreamRenderer(id, echo, new_shelf(), 1).begin():
            for payload in payloads(created):
                await self._send_text(payload)
        response = response_object(id, echo, "completed", [], outcome)
        await self._send_text(_encode({"type": "response.completed", "response": response, "sequence_number": 1}))

    # sending --------------------------------------------------------------------------------------------------------
    async def _refuse(self, refusal: Refusal) -> None:
        self._door.refused(refusal)
        error = refusal.body()["error"] | ({"headers": refusal.headers} if refusal.headers else {})
        await self._send_text(_encode({"type": "error", "status": refusal.status, "error": error}))

    async def _close(self, goodbye: Goodbye) -> None:
        if goodbye.refusal is not None:
            await self._refuse(goodbye.refusal)
        await self._send({"type": "websocket.close", "code": goodbye.code, "reason": goodbye.reason})

    async def _send_text(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "text": data.decode()})


def _parse(body: Mapping[str, Any]) -> tuple[CreateResponse, bool]:
    """What is asked for, and whether an answer is to be generated."""
    for name, values in _OF_HTTP.items():
        if body.get(name) not in values:
            raise UnsupportedParameter(f"`{name}` has no meaning over WebSocket; leave it out.", param=name)
    generate = body.get("generate")
    if generate is not None and not isinstance(generate, bool):
        raise BadRequest("`generate` is true or false.", param="generate")
    left_out = {"type", "generate", *_OF_HTTP}
    asked = {name: value for name, value in body.items() if name not in left_out}
    return parse_create(asked | {"stream": True}), generate is not False


def _end_unheard(beginning: asyncio.Task[LiveTurn | Attached]) -> None:
    if beginning.cancelled() or beginning.exception() is not None:
        return
    turn = beginning.result()
    if isinstance(turn, LiveTurn):
        turn.stop_if_alone()
