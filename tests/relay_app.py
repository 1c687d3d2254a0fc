"""A gateway of the relay routes alone: real sockets, real Redis, real keys. For tests and benchmarks of the relay.

python -m tests.relay_app   with the gateway's settings in the environment; prints {"port", "key"} when it serves.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.admission.queue import RoundRobinQueue
from gateway.api import messages, openai
from gateway.api.relayed import RelayDoor
from gateway.auth.authenticator import Authenticator
from gateway.auth.principal import Principal, Scope
from gateway.auth.secret import Secrets
from gateway.engine import Engine, EngineState
from gateway.errors import Refusal
from gateway.limits import Limits
from gateway.redis_client import RedisClient
from gateway.relay import Relay, Served, anthropic_error_body
from gateway.settings import Settings


@dataclass
class RelayGateway:
    """A running one; `served` holds what became of each request."""

    url: str
    key: str
    engine: Engine
    queue: RoundRobinQueue
    auth: Authenticator
    served: list[tuple[Principal, Served]] = field(default_factory=list)

    async def new_key(self, person: str, scopes: frozenset[Scope] = frozenset({Scope.CHAT})) -> str:
        made = await self.auth.people.ensure(person)
        return (await self.auth.keys.create(made.id, scopes=scopes))[1]

    async def until_served(self, count: int, within_seconds: float = 5.0) -> Served:
        async with asyncio.timeout(within_seconds):
            while len(self.served) < count:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.002)
        return self.served[count - 1][1]


@asynccontextmanager
async def relay_gateway(settings: Settings, redis: RedisClient, *, keep: bool = True) -> AsyncIterator[RelayGateway]:
    engine = Engine(settings)
    queue = RoundRobinQueue(
        lambda: engine.seats, per_person=settings.queue_per_person, max_wait_seconds=settings.max_wait_seconds
    )
    engine.on_change(queue.dispatch)
    secrets = Secrets.from_file(settings.secret_file)
    auth = Authenticator(redis, secrets, settings)
    gateway = RelayGateway("", "", engine, queue, auth)
    relay = Relay(engine, queue, lambda who, served: gateway.served.append((who, served)) if keep else None)
    door = RelayDoor(auth, secrets, engine, relay, settings)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(openai.router(door))
    app.include_router(messages.router(door))
    app.add_exception_handler(Refusal, _render)
    await engine.start()
    gateway.key = await gateway.new_key("ada")
    config = uvicorn.Config(
        Limits(app, settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve())
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells it in no other way
            await asyncio.sleep(0.002)
        gateway.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield gateway
    finally:
        server.should_exit = server.force_exit = True
        await serving
        await engine.close()


async def _render(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    anthropic = request.url.path.startswith("/v1/messages")
    body = anthropic_error_body(refusal) if anthropic else refusal.body()
    return JSONResponse(body, refusal.status, refusal.headers)


async def main() -> None:
    settings = Settings.from_environment(os.environ)
    password = settings.redis_password_file.read_text() if settings.redis_password_file else None
    redis = RedisClient(settings.redis_url, password)
    async with relay_gateway(settings, redis, keep=False) as gateway:
        while gateway.engine.state is not EngineState.READY:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(json.dumps({"port": int(gateway.url.rpartition(":")[2]), "key": gateway.key}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
