"""The composition root: builds the parts, mounts the doors, renders the errors. No route, no business `if`."""

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway import VERSION
from gateway.admission.line import Capacity, Line
from gateway.admission.queue import FairQueue
from gateway.api import (
    admin,
    conversations,
    messages,
    openai,
    openapi,
    ops,
    pages,
    response_compact,
    response_socket,
    responses,
    sign_in,
    usage,
)
from gateway.api.relayed import RelayDoor
from gateway.api.response_order import Orders
from gateway.auth import Principal
from gateway.auth.authenticator import Authenticator
from gateway.auth.links import Links
from gateway.auth.login import Login
from gateway.auth.passwords import Passwords
from gateway.auth.seal import seal
from gateway.auth.secret import Secrets, read_secret
from gateway.auth.throttle import Throttle
from gateway.conversations.store import RedisConversations
from gateway.engine import Engine
from gateway.errors import MethodNotAllowed, NotFound, Refusal, Unavailable
from gateway.forms import Forms
from gateway.limits import Limits
from gateway.machine import Machine
from gateway.metrics import Metrics
from gateway.migrations import UnusableData, bring_forward
from gateway.overload import Ladder, measuring
from gateway.quotas import Allowance
from gateway.quotas.store import RedisQuotas
from gateway.quotas.telling import ANTHROPIC
from gateway.redis_client import RedisClient
from gateway.relay import Relay, Served, anthropic_error_body
from gateway.runner import Runner
from gateway.settings import Settings

OPEN_RETRY_SECONDS = 0.5
MEASURE_SECONDS = 1.0

log = logging.getLogger("deskmate.gateway")


class Gateway:
    """The whole application (ASGI). `drain` is called when it is asked to stop, before connections are closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        keys = Secrets.from_file(settings.secret_file)
        self.redis = RedisClient.from_settings(settings)
        self.metrics = Metrics(VERSION, settings.metrics_folder)
        self.engine = Engine(settings)
        self.store = RedisConversations(
            self.redis, retention_days=settings.retention_days, log_ttl_seconds=settings.log_ttl_seconds
        )
        holder = f"gw_{secrets.token_hex(6)}"
        everybody = Allowance.from_settings(settings)
        line = Line(self.redis, holder, settings.queue_per_person, settings.max_wait_seconds, everybody)
        self.quotas = RedisQuotas(self.redis, everybody)
        machine = Machine(settings.status_file and settings.status_file.parent)
        self.ladder = Ladder(measuring(machine.used, self.redis.answer_seconds))
        self.queue = FairQueue(line, lambda: Capacity(self.engine.seats, self.engine.kv_tokens), self.ladder)
        self.engine.on_change(self.queue.changed)
        self.runner = Runner(
            self.store,
            self.queue,
            self.engine,
            self.metrics,
            holder=holder,
            salt_of=keys.cache_salt,
            seal=partial(seal, keys),
        )
        self.auth = Authenticator(self.redis, keys, settings)
        file = settings.metrics_token_file
        token = read_secret("DESKMATE_METRICS_TOKEN_FILE", file) if file else None
        self._ops = ops.OpsDoor(
            self.auth,
            self.redis,
            self.engine,
            self.metrics,
            settings,
            self._measure,
            self.queue.look,
            self.ladder.shown,
            token,
        )
        self._stop_at = float("inf")
        self.unusable: UnusableData | None = None  # why it stopped by itself
        self._asgi = Limits(self._application(keys), settings, render=self._render)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    def drain(self) -> None:
        """No longer be asked; what runs, and what still comes on an open connection, may go on for the drain time."""
        self._ops.draining = True
        self._stop_at = time.monotonic() + self._settings.drain_seconds
        self._sockets.drain()

    async def hand_over(self) -> None:
        """Let others go on with what runs, before its listeners are cut: a turn may end with its last listener."""
        await self.runner.close(0.0)

    # composition --------------------------------------------------------------------------------------------------
    def _application(self, keys: Secrets) -> FastAPI:
        settings, auth, engine = self._settings, self.auth, self.engine
        links = Links(self.redis, keys, settings)
        login = Login(auth.people, links, Passwords(), Throttle(self.redis, keys))
        forms = Forms(engine)
        relayed = RelayDoor(auth, keys, engine, Relay(engine, self.queue, self._served), forms, settings)
        orders = Orders(keys, self.store, engine, settings, forms, self.runner.holder)
        turns = responses.ResponsesDoor(auth, orders, self.store, self.runner, engine)
        self._sockets = response_socket.SocketDoor(
            auth,
            orders,
            self.runner,
            engine,
            most_seconds=settings.socket_seconds,
            most_bytes=settings.body_limit_bytes,
            refused=self._count_refusal,
        )
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        for router in (
            openai.router(relayed),
            messages.router(relayed),
            responses.router(turns),
            response_compact.router(response_compact.CompactDoor(auth, orders, self.store, self.runner)),
            response_socket.router(self._sockets),
            conversations.router(conversations.ConversationsDoor(auth, self.store)),
            sign_in.router(auth, login),
            openapi.router(auth),
            usage.router(auth, self.quotas),
            admin.router(auth, links, self.quotas, self.runner.stop_all),
            ops.router(self._ops),
            pages.router(),
        ):
            app.include_router(router)
        app.add_exception_handler(Refusal, self._on_refusal)
        app.add_exception_handler(HTTPException, self._on_http_exception)
        app.add_exception_handler(Exception, self._on_bug)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        opening = await self._open_storage()
        watching = [asyncio.create_task(self.auth.watch.run()), asyncio.create_task(self.ladder.run())]
        await self.engine.start()
        await self.queue.start()
        await self.runner.start()
        watching.append(asyncio.create_task(self._measure_for_others()))
        try:
            yield
        finally:
            opening.cancel()
            for task in watching:
                task.cancel()
            await self.runner.close(max(0.0, self._stop_at - time.monotonic()))
            await self.queue.close()
            await self.engine.close()
            await self.redis.aclose()

    async def _open_storage(self) -> asyncio.Task[None]:
        """Nobody is answered from data that was not looked at. Where Redis comes later than we do, until then its users
        get 503."""
        self.redis.closed = "Redis cannot be reached; try again in a moment."
        tried = asyncio.Event()
        opening = asyncio.create_task(self._keep_opening(tried))
        await tried.wait()
        return opening

    async def _keep_opening(self, tried: asyncio.Event) -> None:
        redis = RedisClient.from_settings(self._settings)
        try:
            while not await self._opened(redis):
                tried.set()
                await asyncio.sleep(OPEN_RETRY_SECONDS)
        finally:
            tried.set()
            await redis.aclose()

    async def _opened(self, redis: RedisClient) -> bool:
        """Whether there is nothing more to try."""
        try:
            await bring_forward(redis, log.warning)
        except Unavailable as trouble:
            self.redis.closed = trouble.message
            return False
        except UnusableData as fault:
            self.unusable = fault
            signal.raise_signal(signal.SIGTERM)  # stops as if asked to; the command line says why
            return True
        self.redis.closed = None
        return True

    # counting -----------------------------------------------------------------------------------------------------
    async def _measure_for_others(self) -> None:
        """Whoever is scraped tells of all who share the folder, as far as they have measured themselves."""
        while self._settings.metrics_folder:
            self._measure()
            await asyncio.sleep(MEASURE_SECONDS)

    def _measure(self) -> None:
        self.metrics.running.set(self.queue.in_flight)
        self.metrics.waiting.set(self.queue.waiting)
        self.metrics.seats.set(self.engine.seats)
        for resource, rung in self.ladder.rungs.items():
            self.metrics.overload.labels(resource.name).set(rung)

    def _served(self, principal: Principal, served: Served) -> None:
        route = served.path.removeprefix("/v1/").replace("/", "_")
        first = served.first_seconds
        self.metrics.count(
            route,
            served.outcome,
            served.prompt_tokens,
            served.cached_tokens,
            served.completion_tokens,
            served.queue_seconds,
            first if served.streamed else None,
            served.seconds - first if served.streamed and first is not None else 0.0,
        )

    def _count_refusal(self, refusal: Refusal) -> None:
        self.metrics.refusals.labels(refusal.code).inc()

    # errors -------------------------------------------------------------------------------------------------------
    def _render(self, scope: Scope, refusal: Refusal) -> Response:
        """The one place that turns a refusal into an answer, in the route's own shape."""
        self._count_refusal(refusal)
        anthropic = scope["path"].startswith("/v1/messages")
        body = anthropic_error_body(refusal) if anthropic else refusal.body()
        headers = {
            name: value for name, value in refusal.headers.items() if anthropic or not name.startswith(ANTHROPIC)
        }
        return JSONResponse(body, refusal.status, headers)

    async def _on_refusal(self, request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)  # noqa: S101 - what it is registered for
        return self._render(request.scope, refusal)

    async def _on_http_exception(self, request: Request, error: Exception) -> Response:
        method, path = request.method, request.url.path[:80]
        if isinstance(error, HTTPException) and error.status_code == 405:
            return self._render(request.scope, MethodNotAllowed(f"{method} is not possible on {path}."))
        return self._render(request.scope, NotFound(f"{method} {path} does not exist here.", code="unknown_url"))

    async def _on_bug(self, request: Request, error: Exception) -> Response:
        """A mistake of ours: reported with the request's id, and nothing of it shown."""
        id = request.scope.get("state", {}).get("request_id", "")
        log.error("request %s broke off: %s", id, type(error).__name__)
        return self._render(request.scope, Refusal(f"Something went wrong here; please report the request id {id}."))


def build(settings: Settings) -> Gateway:
    return Gateway(settings)
