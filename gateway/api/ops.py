"""The door of operations: is it alive, is it ready, what does it measure. Translates, decides nothing."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.admission import LineState
from gateway.auth import Scope
from gateway.auth.authenticator import Authenticator, bearer_of
from gateway.engine import Engine, EngineState
from gateway.errors import StorageFull, Unavailable
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.redis_client import RedisClient
from gateway.settings import Settings

INFO_SECONDS = 1.0  # what is measured must not hold up the measuring


@dataclass(slots=True)
class OpsDoor:
    auth: Authenticator
    redis: RedisClient
    engine: Engine
    metrics: Metrics
    settings: Settings
    measure: Callable[[], None]  # sets the gauges
    look: Callable[[], Awaitable[LineState]]
    overload: Callable[[], Mapping[str, str]]  # what runs short
    token: bytes | None = None  # of a scraper that has no key of its own
    draining: bool = False
    began: float = field(default_factory=time.time)

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Each part by name, and how far the start is. Public: it says nothing of people, and of the machine only what
        runs short. Overloaded is ready: what is there is read and stopped here, and refusals say when to come again."""
        parts: list[dict[str, Any]] = [
            {"name": "redis", "state": await self._redis_state(), "since": self.began},
            {"name": "gateway", "state": "draining" if self.draining else "ready", "since": self.began},
            {"name": "engine", "state": str(self.engine.state), "since": self.engine.since or self.began},
        ]
        ready = all(part["state"] == "ready" for part in parts)
        body = {"ready": ready, "parts": parts, "stages": self._stages(), "model": self._model()}
        body["overload"] = self.overload()
        return Response(msgspec.json.encode(body), 200 if ready else 503, media_type="application/json")

    async def gateway_metrics(self, request: Request) -> Response:
        await self._may_measure(request)
        told, line, state = await asyncio.gather(self._told_by_redis(), self._line(), self._redis_state())
        self.measure()
        self.metrics.redis_told(*told)
        self.metrics.line_told(line)
        self.metrics.up.labels("redis").set(state == "ready")
        self.metrics.up.labels("engine").set(self.engine.state is EngineState.READY)
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    async def worker_metrics(self, request: Request) -> Response:
        """The worker's own, passed on: locally it has no port that Prometheus could reach."""
        await self._may_measure(request)
        try:
            measured = await self.engine.get("/metrics")
        except Unavailable as away:  # answered here: among the refusals that are counted, a scrape would hide people's
            return PlainTextResponse(f"{away.message}\n", 503)
        return Response(measured, media_type=CONTENT_TYPE)

    async def _may_measure(self, request: Request) -> None:
        """A peer on this machine that no proxy speaks for, whoever shows the token, or a key with the scope."""
        if not (_is_local(request) or self._shows_token(request)):
            await self.auth.requires(Scope.METRICS)(request)

    def _shows_token(self, request: Request) -> bool:
        shown = bearer_of(request)
        return self.token is not None and shown is not None and hmac.compare_digest(shown.encode(), self.token)

    async def _told_by_redis(self) -> tuple[Mapping[str, str], float]:
        """The fields of INFO, none when it is not answered in time; and the seconds it took."""
        asked = time.monotonic()
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(INFO_SECONDS):
                return await self.redis.info(), time.monotonic() - asked
        return {}, 0.0

    async def _line(self) -> LineState | None:
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(INFO_SECONDS):
                return await self.look()
        return None

    async def _redis_state(self) -> str:
        try:
            await self.redis.call("PING")
        except StorageFull:
            return "full"
        except Unavailable:
            return "down"
        return "ready"

    def _model(self) -> dict[str, Any] | None:
        model = self.engine.model
        if model is None:
            return None
        return {"id": model.id, "demo": model.demo, "context_tokens": model.context_tokens}

    def _stages(self) -> list[Any]:
        """The supervisor's account of the start; empty where there is none."""
        file = self.settings.status_file
        try:
            status = msgspec.json.decode(file.read_bytes()) if file else {}
        except (OSError, msgspec.DecodeError):
            return []  # just being replaced, or not written yet
        stages = status.get("stages", [])
        return stages if isinstance(stages, list) else []


def router(door: OpsDoor) -> APIRouter:
    routes = APIRouter()
    routes.add_route("/healthz", door.healthz, methods=["GET"])
    routes.add_route("/readyz", door.readyz, methods=["GET"])
    routes.add_route("/metrics", door.gateway_metrics, methods=["GET"])
    routes.add_route("/metrics/worker", door.worker_metrics, methods=["GET"])
    return routes


def _is_local(request: Request) -> bool:
    if request.client is None or request.scope.get("state", {}).get("forwarded", False):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
