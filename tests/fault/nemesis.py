"""Breaks one part at a time, by pid or through a proxy, and writes each fault down. Judges nothing."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fault.desk import Desk
from tests.proxy import Proxy


class Nemesis:
    def __init__(self, desk: "Desk") -> None:
        self.desk = desk

    # processes ----------------------------------------------------------------------------------------------------
    async def kill_gateway(self, number: int, *, back: bool = True) -> None:
        self.desk.history.fault("gateway killed")
        await asyncio.to_thread(self.desk.gateways[number].stop, signal.SIGKILL)
        if back:
            await self.start_gateway(number)

    async def start_gateway(self, number: int) -> None:
        await asyncio.to_thread(self.desk.gateways[number].start)

    async def restart_gateway(self, number: int) -> None:
        """As an administrator does: asked to stop, waited for, started again."""
        self.desk.history.fault("gateway restarted")
        code = await asyncio.to_thread(self.desk.gateways[number].stop)
        assert code == 0, f"the gateway ended with {code}: {self.desk.gateways[number].log.read_text()[-2000:]}"
        await self.start_gateway(number)

    async def kill_redis(self, *, back: bool = True, away_seconds: float = 0.0) -> None:
        fault = self.desk.history.fault("Redis killed")
        await asyncio.to_thread(self.desk.redis.kill)
        if back:
            await asyncio.sleep(away_seconds)
            await asyncio.to_thread(self.desk.redis.start)
            fault.until = time.time()

    async def kill_worker(self, number: int = 0, *, back: bool = True, away_seconds: float = 0.0) -> None:
        self.desk.history.fault("worker killed")
        worker = self.desk.workers[number]
        await asyncio.to_thread(worker.stop, signal.SIGKILL)
        if back:
            await asyncio.sleep(away_seconds)
            await asyncio.to_thread(worker.start)

    @asynccontextmanager
    async def frozen(self, what: str, number: int = 0) -> AsyncIterator[None]:
        """SIGSTOP, and SIGCONT at the end: it hangs and holds its connections."""
        processes = {"gateway": self.desk.gateways, "worker": self.desk.workers, "Redis": [self.desk.redis]}
        process = processes[what][number].process  # type: ignore[attr-defined]
        fault = self.desk.history.fault(f"{what} frozen")
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            fault.until = time.time()

    # the wires ----------------------------------------------------------------------------------------------------
    def cut(self, proxy: Proxy, where: str, at_most: int | None = None) -> int:
        """Connections that carry something break."""
        count = proxy.cut(at_most)
        self.desk.history.fault(f"connection to the {where} cut", count)
        return count

    @asynccontextmanager
    async def losing(self, proxy: Proxy, where: str, share: float) -> AsyncIterator[None]:
        """The other side acts, and its answer never comes."""
        before, proxy.lose_share = proxy.lost, share
        try:
            yield
        finally:
            proxy.lose_share = 0.0
            self.desk.history.fault(f"reply of {where} lost", proxy.lost - before)

    @asynccontextmanager
    async def slow(self, proxy: Proxy, where: str, seconds: float, jitter: float = 0.0) -> AsyncIterator[None]:
        fault = self.desk.history.fault(f"{where} slow")
        proxy.delay_seconds, proxy.jitter_seconds = seconds, jitter
        try:
            yield
        finally:
            proxy.delay_seconds = proxy.jitter_seconds = 0.0
            fault.until = time.time()

    @asynccontextmanager
    async def stalled(self, proxy: Proxy, where: str) -> AsyncIterator[None]:
        fault = self.desk.history.fault(f"{where} stalled")
        proxy.stalled = True
        try:
            yield
        finally:
            proxy.stalled = False
            fault.until = time.time()
