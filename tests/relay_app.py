"""The real gateway on a real socket in the test's own loop, with an eye on what became of each relayed request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn

from gateway.admission.queue import FairQueue
from gateway.app import Gateway
from gateway.auth.principal import Principal, Scope
from gateway.engine import Engine, EngineState
from gateway.relay import Served
from gateway.settings import Settings

READY_SECONDS = 10.0


class Watched(Gateway):
    """Remembers what the relay reports for counting."""

    def __init__(self, settings: Settings) -> None:
        self.relayed: list[Served] = []
        super().__init__(settings)

    def _served(self, principal: Principal, served: Served) -> None:
        self.relayed.append(served)
        super()._served(principal, served)


@dataclass
class RelayGateway:
    app: Watched
    url: str
    key: str = field(default="", repr=False)

    @property
    def engine(self) -> Engine:
        return self.app.engine

    @property
    def queue(self) -> FairQueue:
        return self.app.queue

    async def new_key(self, person: str, scopes: frozenset[Scope] = frozenset({Scope.CHAT})) -> str:
        made = await self.app.auth.people.ensure(person)
        return (await self.app.auth.keys.create(made.id, scopes=scopes))[1]

    async def until_served(self, count: int, within_seconds: float = 5.0) -> Served:
        """What became of the `count`th request, once it has ended."""
        async with asyncio.timeout(within_seconds):
            while len(self.app.relayed) < count:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.002)
        return self.app.relayed[count - 1]


@asynccontextmanager
async def relay_gateway(settings: Settings) -> AsyncIterator[RelayGateway]:
    """Ready: the engine too. The first key belongs to ada."""
    app = Watched(settings)
    config = uvicorn.Config(app, host=settings.host, port=settings.port, access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())  # `serve` would take the signals from pytest
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not server.started or app.engine.state is not EngineState.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        gateway = RelayGateway(app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        gateway.key = await gateway.new_key("ada")
        yield gateway
    finally:
        server.should_exit = server.force_exit = True
        app.drain()
        await serving
