"""Passes a stateless request to the engine and the engine's bytes back. Knows no routes, no keys and no prompts.

A request waits for its seat inside its response: quick answers carry the engine's own status; after a second of
waiting a stream begins with comments that say the place in line, and a later error becomes an event. Bytes pass
untouched but for the usage event that the caller did not ask for; an incomplete event is held back until it is whole.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from gateway.admission import Admission, Place, Ticket, Waiting
from gateway.auth.principal import Principal
from gateway.engine import Engine, Upstream
from gateway.errors import EngineLost, PromptRefused, Refusal
from gateway.quotas import Balance
from gateway.quotas.telling import anthropic_limit_headers, limit_headers
from gateway.refused import broke_off, reason_of, refused
from gateway.sse import DONE, HEARTBEAT, HEARTBEAT_SECONDS, unless_left
from gateway.waited import comment_of, headers_of, is_news

FIRST_TOKENS = 1000.0  # so much it weighs, at first, that a prompt is as long as it looks
KEPT = 0.95  # of all that was seen before, with each further prompt
DENSEST = 4.0  # times what a prompt looks like, or so much less: no single one says more
PATIENCE_SECONDS = 1.0  # a stream that has not begun by then begins with comments
RELEASE_SECONDS = 5.0
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """OpenAI's and Anthropic's counts in one."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


_decode_counted = msgspec.json.Decoder(_Counted).decode


def openai_error(refusal: Refusal) -> bytes:
    return b"data: " + msgspec.json.encode(refusal.body()) + b"\n\n" + DONE


def anthropic_error_body(refusal: Refusal) -> dict[str, Any]:
    """Anthropic's error object: its own names of kinds, by status."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kinds |= {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}
    default = "api_error" if refusal.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": kinds.get(refusal.status, default), "message": refusal.message}}


def anthropic_error(refusal: Refusal) -> bytes:
    return b"event: error\ndata: " + msgspec.json.encode(anthropic_error_body(refusal)) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a route's event stream looks, as far as the relay must know it.

    No mark can stand in what a model says: inside JSON its quotes and line ends are escaped.
    """

    path: str
    opening_events: int  # that carry no token
    usage_mark: bytes  # stands in the event that holds the usage, and in no other
    usage_is_extra: bool  # that event exists for the usage alone and may be left out
    error_mark: bytes
    end_mark: bytes
    error: Callable[[Refusal], bytes] = openai_error
    limits: Callable[[Balance], Mapping[str, str]] = limit_headers  # of a person, as headers


_OPENAI = (b'"choices":[]', True, b'data: {"error"', DONE)
CHAT = Dialect("/v1/chat/completions", 1, *_OPENAI)
COMPLETION = Dialect("/v1/completions", 0, *_OPENAI)
MESSAGES = Dialect(
    "/v1/messages",
    2,
    b'{"type":"message_delta"',
    False,
    b"event: error\ndata: ",
    b'{"type":"message_stop"}\n\n',
    anthropic_error,
    anthropic_limit_headers,
)


@dataclass(frozen=True, slots=True)
class Order:
    """One request, checked and ready to be sent."""

    dialect: Dialect
    body: bytes
    principal: Principal
    ticket: Ticket
    request_id: str
    streamed: bool
    keeps_usage: bool
    rough_tokens: int = 0  # of the prompt, by its length alone
    headers: Mapping[str, str] = field(default_factory=dict)  # of our answer


class Density:
    """Tokens of a prompt for each that its length lets expect, as the engine counted lately.

    It counts at the end of an answer: by this pays who leaves before that. Long prompts weigh more than short ones.
    """

    def __init__(self) -> None:
        self._rough = self._counted = FIRST_TOKENS

    def tokens(self, rough: int) -> int:
        return max(1, round(rough * self._counted / self._rough))

    def learn(self, rough: int, counted: int) -> None:
        self._rough = KEPT * self._rough + rough
        self._counted = KEPT * self._counted + min(DENSEST * rough, max(rough / DENSEST, counted))


@dataclass(slots=True)
class Served:
    """How it went: what is charged and counted."""

    path: str
    streamed: bool
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = False  # by the engine: what came before are guesses
    outcome: str = "failed"  # completed, refused (by the engine), failed, left (by the client)
    place: int = 0  # in line, when it came
    queue_seconds: float = 0.0
    first_seconds: float | None = None  # from the request to the first byte of the answer
    seconds: float = 0.0

    def take(self, counted: bytes) -> None:
        """The counts of an answer or of a usage event (JSON); what is no JSON counts nothing."""
        try:
            usage = _decode_counted(counted).usage
        except msgspec.MsgspecError:
            return
        if usage is not None:
            details = usage.prompt_tokens_details
            self.counted = True
            self.prompt_tokens = usage.prompt_tokens or usage.input_tokens
            self.completion_tokens = usage.completion_tokens or usage.output_tokens
            self.cached_tokens = (details.cached_tokens if details else usage.cache_read_input_tokens) or 0


OnServed = Callable[[Principal, Served], None]


@dataclass(frozen=True, slots=True)
class Relay:
    """`on_served` is called once for each request, whatever became of it."""

    engine: Engine
    admission: Admission
    on_served: OnServed
    density: Density = field(default_factory=Density)

    async def begin(self, order: Order) -> "RelayResponse":
        """Take a place in line, at once. Raises Busy."""
        began = time.monotonic()
        return RelayResponse(self, order, await self.admission.enqueue(order.ticket), began)

    async def ask(self, path: str, body: bytes, request_id: str) -> bytes:
        """A question that needs no seat, e.g. a token count."""
        async with self.engine.open(path, body, request_id) as upstream:
            answer = await upstream.read()
            if upstream.status != 200:
                raise refused(upstream.status, answer)
            return answer


class RelayResponse:
    """The ASGI response of one request: seat, engine, bytes. Releases its place itself, in every case."""

    def __init__(self, relay: Relay, order: Order, place: Place, began: float) -> None:
        self._relay, self._order, self._place = relay, order, place
        self._served = Served(order.dialect.path, order.streamed)
        self._began = began
        headers = {**order.headers, **order.dialect.limits(place.balance)}
        self._head: list[tuple[bytes, bytes]] = [(k.encode(), v.encode()) for k, v in headers.items()]
        self._begun = False
        self._waiting = Waiting(0, None)
        self._waited_at = 0.0  # when that was heard
        self._moved = asyncio.Event()
        self._patience: asyncio.TimerHandle | None = None
        self._comments: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = self._served
        try:
            if await unless_left(receive, self._answer(send)) is None:
                served.outcome = "left"
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_SECONDS):
                await self._place.release(max(0, served.completion_tokens), served.prompt_tokens - served.cached_tokens)
            if served.counted and self._order.rough_tokens:
                self._relay.density.learn(self._order.rough_tokens, served.prompt_tokens)
            served.seconds = time.monotonic() - self._began
            self._relay.on_served(self._order.principal, served)

    async def _answer(self, send: Send) -> bool:
        """True at the end; cancelled when the client leaves."""
        try:
            await (self._stream(send) if self._order.streamed else self._whole(send))
        except Refusal as refusal:
            if isinstance(refusal, PromptRefused):
                self._served.outcome = "refused"
            if not self._begun:
                raise  # to the one place that renders errors
            await self._end(send, self._order.dialect.error(refusal))
        return True

    async def _seat(self) -> None:
        async for waiting in self._place.wait():
            if is_news(waiting, self._waiting, time.monotonic() - self._waited_at):
                self._waiting, self._waited_at = waiting, time.monotonic()
                self._served.place = self._served.place or waiting.position
                self._moved.set()
        self._served.queue_seconds = time.monotonic() - self._began

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Upstream]:
        """The engine's answer, once a seat is given. Raises what the engine refused."""
        order, served = self._order, self._served
        await self._seat()
        async with self._relay.engine.open(order.dialect.path, order.body, order.request_id) as upstream:
            if upstream.status != 200:
                served.outcome = "refused"
                raise refused(upstream.status, await upstream.read())
            served.prompt_tokens = order.ticket.prompt_tokens
            yield upstream

    # not streamed -----------------------------------------------------------------------------------------------------
    async def _whole(self, send: Send) -> None:
        served = self._served
        async with self._open() as upstream:
            body = await upstream.read()
        served.first_seconds = time.monotonic() - self._began
        served.take(body)
        served.outcome = "completed"
        engine = served.first_seconds - served.queue_seconds
        waited = headers_of(served.place, queued=served.queue_seconds, engine=engine)
        head = [
            *self._head,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name.encode(), value.encode()) for name, value in waited.items()),
        ]
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await self._end(send, body)

    # streamed ---------------------------------------------------------------------------------------------------------
    async def _stream(self, send: Send) -> None:
        served = self._served
        events = _Events(self._order, served)
        self._patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._start_comments, send)
        try:
            async with self._open() as upstream:
                async for data in upstream.chunks():  # the hot path: once for each read, however many events it holds
                    whole = events.take(data)
                    self._place.produced = served.completion_tokens
                    if served.first_seconds is None and (whole or not events.broken):
                        await self._first_arrived(send)
                    if whole:
                        await send({"type": "http.response.body", "body": whole, "more_body": True})
                    if events.broken:
                        raise broke_off(reason_of(events.broken))
        finally:
            await self._stop_comments()
        if not events.ended:
            raise EngineLost("The engine ended the answer without finishing it; ask again in a moment.")
        served.outcome = "completed"
        await self._end(send, b"")

    async def _first_arrived(self, send: Send) -> None:
        self._served.first_seconds = time.monotonic() - self._began
        await self._stop_comments()
        await self._begin(send)

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": [*self._head, *HEADERS]})

    async def _end(self, send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last, "more_body": False})

    # while it waits ---------------------------------------------------------------------------------------------------
    def _start_comments(self, send: Send) -> None:
        self._comments = asyncio.create_task(self._comment(send))

    async def _stop_comments(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._comments is not None:
            self._comments.cancel()
            await asyncio.wait([self._comments])
            self._comments = None

    async def _comment(self, send: Send) -> None:
        """Say what is new of the place and, every ten seconds, that somebody is there; also during a long prefill."""
        await self._begin(send)
        said: Waiting | None = None
        while True:
            comment = HEARTBEAT if self._waiting is said else comment_of(self._waiting)
            said = self._waiting
            self._moved.clear()
            await send({"type": "http.response.body", "body": comment, "more_body": True})
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                pass


class _Events:
    """Whole events out of what the network delivers; counts them, finds the usage, the end and the engine's errors."""

    __slots__ = ("_dialect", "_drops_usage", "_rest", "_served", "_told", "broken", "ended")

    def __init__(self, order: Order, served: Served) -> None:
        self._dialect = order.dialect
        self._drops_usage = order.dialect.usage_is_extra and not order.keeps_usage
        self._served = served
        self._rest = b""
        self._told = False  # the engine said how many tokens there were
        self.ended = False  # the engine finished its answer
        self.broken = b""  # the error that it said instead, as JSON
        served.completion_tokens = -order.dialect.opening_events

    def take(self, data: bytes) -> bytes:
        """What of `data`, and of what was held back, is to be sent now."""
        dialect = self._dialect
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not data.endswith(b"\n\n"):
            data, mark, self._rest = data.rpartition(b"\n\n")
            data += mark
        if dialect.error_mark in data:
            data, mark, error = data.partition(dialect.error_mark)
            self.broken = (mark + error).partition(b"data: ")[2].partition(b"\n\n")[0]
        if not self._told:
            self._served.completion_tokens += data.count(b"\n\n")  # a token an event
        if dialect.usage_mark in data:
            data = self._take_usage(data)
        if data.endswith(dialect.end_mark):
            self.ended = True
        return data

    def _take_usage(self, data: bytes) -> bytes:
        at = data.index(self._dialect.usage_mark)
        start = data.rfind(b"\n\n", 0, at) + 2 if b"\n\n" in data[:at] else 0
        end = data.index(b"\n\n", at) + 2
        event = data[start:end]
        self._told = True
        self._served.take(event[event.index(b"data: ") + 6 :])
        return data[:start] + data[end:] if self._drops_usage else data
