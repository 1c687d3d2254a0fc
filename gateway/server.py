"""Runs an ASGI application on uvicorn: sockets, TLS, shutdown, and what a client's bytes must keep to before they are a
request. Knows no route.

When it is asked to stop, it takes no new connection; where another process listens on the same socket, that one does.
Whatever comes on a connection it has is answered, and told that this was the last on it (`Connection: close`). One that
has been used and stays idle for a moment is closed: closed at once, it would break a request that is on its way. At the
limit the application hands over what it can; only then is the rest cut.

A usual answer fits into what a connection may buffer, so that it is taken from the engine although its client does not
read. Whoever takes nothing for long is cut.

httptools refuses by itself: Content-Length beside Transfer-Encoding, either of them twice, folded headers, bare line
feeds, signs and blanks in lengths. `_Protocol` adds: time and size of headers, their number, other transfer codings,
other versions, targets that are no path, bodies behind an upgrade, upgrades in a pipeline, long pipelines, trailers.
"""

import asyncio
import logging
import select
import signal
import socket
import sys
import time
from asyncio.events import TimerHandle
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import BadRequest, Overloaded, Refusal, RequestTimeout
from gateway.limits import new_request_id, render_plainly
from gateway.machine import file_limit
from gateway.security_headers import security_headers
from gateway.settings import Settings, SettingsError
from gateway.unread import Unread
from gateway.websocket import SocketProtocol

HEADER_LIMIT_BYTES = 64 << 10
HEADER_LIMIT_COUNT = 100
_PIPELINE_LIMIT = 8
_KEEP_ALIVE_SECONDS = 75  # longer than clients keep an idle connection: they close it, not we under their request
_LAST_IDLE_SECONDS = 1  # the same while we stop
_SEND_BUFFER_BYTES = 128 << 10  # a reader that stalls holds this much of the kernel's memory, not megabytes
_WRITE_BUFFER_BYTES = 256 << 10  # and this much of ours: 1,024 tokens as events of a chat
_LOOK_TICKS = 10  # of a tenth of a second: how often unread connections are looked for
_LAST_WORDS_SECONDS = 0.5  # for those whose answer was handed over to be told so
_BACKLOG = 2048
_LAST_FILES = 0.95  # of those we may open: the rest is kept for what runs, and so that accepting never fails
_CLOSE = (b"connection", b"close")


class ListenError(Exception):
    """The address cannot be listened on; the message names it and says why."""


def serve(
    app: ASGIApp,
    settings: Settings,
    on_drain: Callable[[], None] | None = None,
    on_limit: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers go on for `drain_seconds`; `on_drain` is called before,
    `on_limit` after that time if it was not enough.

    Raises ListenError and SettingsError.
    """
    config = _config(app, settings)
    try:
        config.load()
    except OSError as fault:  # an SSLError is one too
        raise SettingsError(f"DESKMATE_TLS_CERT or DESKMATE_TLS_KEY cannot be used: {fault}") from None
    listeners = inherited(settings.listen_fd) if settings.listen_fd else listen(settings.host, settings.port)
    _Server(config, settings, on_drain, on_limit).run(listeners)


def inherited(descriptors: Sequence[int]) -> list[socket.socket]:
    """The listening sockets that whoever started this process has opened. Raises ListenError."""
    return [_inherited(descriptor) for descriptor in descriptors]


def _inherited(descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return listener
        listener.detach()
    except OSError:
        pass
    raise ListenError(f"DESKMATE_LISTEN_FD names {descriptor}, which is no listening socket of this process")


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`. Raises ListenError."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_listen(family, address) for family, address in dict.fromkeys((info[0], info[4]) for info in infos)]
    except OSError as fault:
        raise ListenError(f"cannot listen on {host}, port {port}: {fault.strerror}") from None


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # inherited by what it accepts
    listener.setblocking(False)
    return listener


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=_protocol(settings),
        ws=SocketProtocol,
        ws_max_size=settings.body_limit_bytes,
        ws_per_message_deflate=False,  # tells about secrets beside chosen text, and holds memory for each connection
        lifespan="on",
        log_config=None,
        log_level="error",  # below it a line for each malformed request
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        on_drain: Callable[[], None] | None,
        on_limit: Callable[[], Awaitable[None]] | None,
    ) -> None:
        super().__init__(config)
        self._drain_seconds = settings.drain_seconds
        self._unread = Unread(settings.unread_seconds)
        self._on_drain = on_drain
        self._on_limit = on_limit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        for listener in sockets or []:
            host, port, *_ = listener.getsockname()
            address = f"[{host}]" if ":" in host else host
            print(f"gateway: listening on {scheme}://{address}:{port}", file=sys.stderr, flush=True)  # noqa: T201

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_TICKS == 0:
            transports = [connection.transport for connection in self.server_state.connections]
            self._unread.look(transports, time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_drain:
            self._on_drain()
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        await super().shutdown(sockets)

    async def _wait_tasks_to_complete(self) -> None:
        """Raises TimeoutError at the limit: then uvicorn cancels what still runs."""
        try:
            async with asyncio.timeout(self._drain_seconds):
                await super()._wait_tasks_to_complete()
        except TimeoutError:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut from now on is cut on purpose
            if self._on_limit and not self.force_exit:
                await self._on_limit()
                if self.server_state.tasks:
                    await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS_SECONDS)
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but an ordered stop ends with exit code 0, not by the signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _protocol(settings: Settings) -> type[HttpToolsProtocol]:
    https = settings.tls_cert is not None

    class Bounded(_Protocol):
        header_seconds = settings.header_seconds
        security_headers = security_headers(https=https)

    return Bounded


class _HeadersTooLarge(BadRequest):
    status = 431
    default_code = "headers_too_large"


class _VersionNotSupported(BadRequest):
    status = 505
    default_code = "http_version_not_supported"


class _Protocol(HttpToolsProtocol):
    """One connection. Between requests and while headers arrive, a timer runs."""

    header_seconds: ClassVar[float]
    security_headers: ClassVar[list[tuple[bytes, bytes]]]

    _timer: TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _refusal: Refusal | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        if _number_of(transport) >= file_limit() * _LAST_FILES:
            self._refuse(Overloaded("The server has all the connections it can have.", retry_after_seconds=5))
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it when the client resets, and it would fire at nothing

    def data_received(self, data: bytes) -> None:
        was_in_headers = self._in_headers
        super().data_received(data)
        if self._in_headers and was_in_headers:  # the parser hoards a header until its end, so count what it was fed
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_LIMIT_BYTES:
                self._refuse(_too_large())
        elif self._is_idle() and self.transport.get_protocol() is self:  # not when it has become a WebSocket
            self._start_timer()

    def shutdown(self) -> None:
        """Called by uvicorn once when it stops, instead of what it would do: cut whoever is not being answered."""
        self.timeout_keep_alive = _LAST_IDLE_SECONDS
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = self.loop.call_later(_LAST_IDLE_SECONDS, self.timeout_keep_alive_handler)
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.default_headers = self.server_state.default_headers

    def timeout_keep_alive_handler(self) -> None:
        """What has come and was not read yet is a request: to close now would reset it."""
        if not _has_news(self.transport):
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_headers:
            return  # a trailer: nobody here asks for one, and it must not become a header after the checks
        super().on_header(name, value)
        if len(self.headers) > HEADER_LIMIT_COUNT:
            raise _too_large()

    def on_headers_complete(self) -> None:
        self._check()
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()
        if self.parser.should_upgrade() and not self._should_upgrade():
            self.cycle.keep_alive = False  # the parser takes what follows for another protocol

    def _should_upgrade(self) -> bool:
        return super()._should_upgrade() and self.parser.get_method() == b"GET"

    def _check(self) -> None:
        """Raise what is wrong with a request whose headers are all here."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEADER_LIMIT_BYTES:
            raise _too_large()
        if (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            raise _VersionNotSupported(f"HTTP/{version} is not spoken here.")
        if not (self.url.startswith((b"/", b"http://", b"https://")) or self.url == b"*"):
            raise BadRequest("The request's target is not a path.")
        if len(self.pipeline) >= _PIPELINE_LIMIT:
            raise BadRequest("Too many requests were sent ahead of their answers.")
        self._check_body(version)

    def _check_body(self, version: str) -> None:
        coding = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if coding and (coding != [b"chunked"] or version == "1.0"):
            raise BadRequest("Of all transfer codings only 'chunked' is understood, and only in HTTP/1.1.")
        has_body = coding or any(name == b"content-length" and value != b"0" for name, value in self.headers)
        if self.parser.should_upgrade() and has_body:
            raise BadRequest("A request with a body cannot ask for an upgrade.")
        if self.parser.should_upgrade() and self.cycle is not None and not self.cycle.response_complete:
            raise BadRequest("An upgrade cannot be asked for ahead of an answer.")

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for whatever the parser, or a callback above, refused."""
        fault = sys.exception()
        cause = fault and fault.__context__
        self._refuse(cause if isinstance(cause, Refusal) else BadRequest("The request is not valid HTTP."))

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_timer()
        if self._may_answer():
            response = render_plainly({}, refusal)
            headers = [*self.server_state.default_headers, *response.raw_headers, *self.security_headers]
            headers += [] if self._is_stopping() else [_CLOSE]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            lines += b"x-request-id: " + new_request_id().encode() + b"\r\n"
            lines += b"cache-control: no-store\r\n\r\n"
            self.transport.write(STATUS_LINE[refusal.status] + lines + bytes(response.body))
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether no other answer is on its way, or a handler's could still begin: it would be cut into."""
        if self.cycle is None or self.cycle.response_complete:
            return True
        if self._in_headers or self.pipeline or self.cycle.response_started:
            return False
        self.cycle.disconnected = True  # what its handler sends from now on goes nowhere
        return True

    def _is_idle(self) -> bool:
        return self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete)

    def _is_stopping(self) -> bool:
        return _CLOSE in self.server_state.default_headers

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._refuse(RequestTimeout(f"The headers did not arrive within {self.header_seconds:g} seconds."))
        else:
            self.transport.close()


def _number_of(transport: asyncio.Transport) -> int:
    """Of its file. The system gives the lowest that is free, so at least so many are open."""
    number: int = transport.get_extra_info("socket").fileno()
    return number


def _has_news(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(_number_of(transport), select.POLLIN)
    return bool(poll.poll(0))


def _too_large() -> Refusal:
    return _HeadersTooLarge(
        f"The headers exceed {HEADER_LIMIT_BYTES:,} bytes or {HEADER_LIMIT_COUNT} in number; send fewer or shorter."
    )
