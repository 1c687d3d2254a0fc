"""What any request must keep to before and while the application reads it; knows no route and no person.

`Limits` wraps the whole application as pure ASGI. It gives each request an id, drops headers only a proxy may set,
checks the Host, bounds the body's size and time, asks for JSON, and puts the security headers on every response.
A streamed chunk costs one comparison: `send` is watched only until the response has begun. The handshake of a WebSocket
is a request like any other; what is wrong with it is answered as HTTP.

For those inside, `scope["state"]` holds `request_id` (str), `forwarded` (bool: it came with a proxy's headers) and
`exchange` (whoever may end the request early hangs up on it).
"""

import asyncio
import ipaddress
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BadRequest, Draining, NotFound, Refusal, RequestTimeout, TooLarge, UnsupportedMediaType
from gateway.security_headers import security_headers
from gateway.settings import Settings

Render = Callable[[Scope, Refusal], Response]
Headers = list[tuple[bytes, bytes]]

_FORWARDING = frozenset({b"forwarded", b"x-real-ip", b"via"})  # and x-forwarded-*
_NOT_FROM_OUTSIDE = frozenset({b"x-request-id", b"x-user", b"x-remote-user", b"remote-user"})
_READ = frozenset({b"content-length", b"content-type", b"transfer-encoding"})
_HOST = re.compile(r"(?P<name>[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 << 20


def render_plainly(scope: Scope, refusal: Refusal) -> Response:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)


class Hosts:
    """The names under which we answer. Others are refused, or a page elsewhere could reach us by rebinding its name."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(settings.public_url or "").hostname
        names = {*settings.allowed_hosts, settings.host, public or "localhost", socket.gethostname()}
        self._any = "*" in names
        self._names = _LOOPBACK | {_bracketed(name.casefold()) for name in names}
        # An address can't be rebound, so one is enough: where we listen beyond loopback, any is ours.
        self._any_address = settings.host not in _LOOPBACK and settings.host != "::1"

    def check(self, values: list[bytes]) -> None:
        """Raise unless `values`, a request's Host headers, are exactly one that is ours."""
        match = _HOST.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
        if match is None:
            raise BadRequest("A request needs exactly one valid Host header.", code="invalid_host")
        name = match["name"].casefold().rstrip(".")
        if not (self._any or name in self._names or (self._any_address and _is_address(name))):
            raise BadRequest(
                f"This server is not known as '{name}'. If it should be, add the name to DESKMATE_ALLOWED_HOSTS.",
                code="unknown_host",
            )


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Limits:
    """ASGI middleware, the outermost. `render` turns a Refusal into a response of the route's error shape."""

    def __init__(self, app: ASGIApp, settings: Settings, render: Render = render_plainly) -> None:
        self.app = app
        self.render = render
        self.hosts = Hosts(settings)
        self.body_limit_bytes = settings.body_limit_bytes
        self.body_seconds = settings.body_seconds
        self.delegate = (settings.delegate_header or "").lower().encode()
        https = settings.tls_cert is not None or (settings.public_url or "").startswith("https:")
        self.headers = security_headers(https=https)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        exchange = (_Exchange if scope["type"] == "http" else _Socket)(self, scope, receive, send)
        try:
            self._check(scope, exchange)
            await self.app(scope, exchange.receive, exchange.send)
            await exchange.end()
        except Refusal as refusal:
            if exchange.begun:
                raise
            await self.render(scope, refusal)(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # nobody but the server does that to a request, when its time to stop is over
            if exchange.begun:
                raise
            stopping = Draining("The gateway is stopping; ask again in a moment.")
            await self.render(scope, stopping)(scope, exchange.receive, exchange.send)
        finally:
            if exchange.at_end is not None:
                exchange.at_end()

    def _check(self, scope: Scope, exchange: "_Caller") -> None:
        head = exchange.head
        state = scope.setdefault("state", {})
        state["request_id"] = exchange.request_id
        state["forwarded"] = head.forwarded
        state["exchange"] = exchange
        scope["headers"] = head.kept
        self.hosts.check(head.hosts)
        if head.has_body and scope.get("method") in _WITH_BODY:
            _check_media_type(head.found.get(b"content-type"))
        if (declared := int(head.found.get(b"content-length", 0))) > self.body_limit_bytes:
            raise _too_large(f"{declared:,} bytes", self.body_limit_bytes)


class _Head:
    """A request's headers, gone through once: `kept` are those the application sees."""

    __slots__ = ("forwarded", "found", "hosts", "kept")

    def __init__(self, headers: Headers, delegate: bytes) -> None:
        self.kept: Headers = []
        self.found: dict[bytes, bytes] = {}
        self.hosts: list[bytes] = []
        self.forwarded = False
        for header in headers:
            name = header[0]
            if name == delegate:
                self.kept.append(header)
            elif name in _FORWARDING or name.startswith(b"x-forwarded-"):
                self.forwarded = True
            elif name not in _NOT_FROM_OUTSIDE:
                self._keep(*header)

    def _keep(self, name: bytes, value: bytes) -> None:
        self.kept.append((name, value))
        if name in _READ:
            self.found[name] = value
        elif name == b"host":
            self.hosts.append(value)

    @property
    def has_body(self) -> bool:
        return self.found.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.found


class _Caller:
    """Whoever asks: has an id, and can be hung up on. `begun`: they have been answered something."""

    left: ClassVar[Message]

    def __init__(self, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        self.request_id = new_request_id()
        self.limits = limits
        self.head = _Head(scope["headers"], limits.delegate)
        self.begun = False
        self.at_end: Callable[[], Any] | None = None
        self._receive = receive
        self._send = send
        self._hung_up = False
        self._waiting: asyncio.Task[Message] | None = None

    def hang_up(self) -> None:
        """From now on the application hears that the client has left."""
        self._hung_up = True
        if self._waiting is not None:
            self._waiting.cancel()

    def receive(self) -> Awaitable[Message]:
        return self._receive_next()

    def send(self, message: Message) -> Awaitable[None]:
        return self._send(message)

    async def end(self) -> None:
        """The application has said all."""

    async def _receive_next(self) -> Message:
        if self._hung_up:
            return self.left
        self._waiting = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((self._waiting,))
            return self.left if self._hung_up else self._waiting.result()
        finally:
            self._waiting.cancel()
            self._waiting = None

    def _complete(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        complete = [header for header in headers if header[0].lower() != b"x-request-id"]
        if not any(name.lower() == b"cache-control" for name, _ in complete):
            complete.append((b"cache-control", b"no-store"))
        return [*complete, *self.limits.headers, (b"x-request-id", self.request_id.encode())]


class _Socket(_Caller):
    """One WebSocket. Its messages are the connection's to bound."""

    left: ClassVar[Message] = {"type": "websocket.disconnect", "code": 1008}
    _accepted = False

    def send(self, message: Message) -> Awaitable[None]:
        return self._send(message) if self.begun else self._begin(message)

    async def _begin(self, message: Message) -> None:
        if message["type"] == "websocket.close":  # no route took it
            raise NotFound("There is no WebSocket at this path.", code="unknown_url")
        self.begun = True
        self._accepted = message["type"] == "websocket.accept"
        await self._send({**message, "headers": self._complete(message.get("headers", []))})

    async def end(self) -> None:
        if self._hung_up and self._accepted:
            with suppress(OSError):  # they have left before
                reason = "The key or session is no longer good."
                await self._send({"type": "websocket.close", "code": 1008, "reason": reason})


class _Exchange(_Caller):
    """One request and its response: counts what comes in, completes what goes out."""

    left: ClassVar[Message] = {"type": "http.disconnect"}

    def __init__(self, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(limits, scope, receive, send)
        self._unread = self.head.has_body
        self._bytes = 0
        self._deadline: float | None = None
        self._lingers = False

    def receive(self) -> Awaitable[Message]:
        return self._receive_body() if self._unread and not self.begun else self._receive_next()

    async def _receive_body(self) -> Message:
        """The next part of the body. Raises TooLarge or RequestTimeout, each time it is asked again."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self.limits.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            seconds = self.limits.body_seconds
            raise RequestTimeout(f"The body did not arrive within {seconds:g} seconds.") from None
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        self._bytes += len(message.get("body", b""))
        if self._bytes > self.limits.body_limit_bytes:
            raise _too_large(f"more than {self.limits.body_limit_bytes:,} bytes", self.limits.body_limit_bytes)
        self._unread = message["type"] == "http.request" and message.get("more_body", False)

    def send(self, message: Message) -> Awaitable[None]:
        if self.begun and not self._lingers:
            return self._send(message)
        return self._begin_or_end(message)

    async def _begin_or_end(self, message: Message) -> None:
        if not self.begun:
            self.begun = True
            self._lingers = self._unread
            message = {**message, "headers": self._complete(message.get("headers", []))}
        elif not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _complete(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        complete = super()._complete(headers)
        return [*complete, (b"connection", b"close")] if self._lingers else complete

    async def _linger(self) -> None:
        """Discard a little of an unread body: to close at once would reset the connection, and the answer be lost."""
        discarded = 0
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while discarded < _LINGER_BYTES:
                    message = await self._receive()
                    discarded += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _check_media_type(value: bytes | None) -> None:
    kind, _, parameters = (value or b"").decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json" or ("charset" in parameters and "utf-8" not in parameters):
        raise UnsupportedMediaType("A body must be JSON in UTF-8, sent with 'content-type: application/json'.")


def _too_large(size: str, limit: int) -> TooLarge:
    return TooLarge(f"The body has {size}; the limit is {limit:,} bytes (setting DESKMATE_BODY_LIMIT_BYTES).")
