"""A TCP proxy that loses replies, cuts, slows and stalls what passes through it. Knows no protocol.

A lost reply: the other side has acted, and nobody hears of it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.listening import stop_listening

Target = Path | tuple[str, int]
QUIET_SECONDS = 0.2  # a connection on which nothing moved for so long carries no answer


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    replied: int = 0  # bytes
    owes: bool = False  # something was asked and nothing of the answer has come yet
    moved: float = field(default_factory=time.monotonic)

    @property
    def in_use(self) -> bool:
        return self.owes or time.monotonic() - self.moved < QUIET_SECONDS

    def abort(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Its faults are attributes that may be set and unset at any time; `lost` and `cuts` count them.

    `lose_replies`     a reply closes its connection instead of arriving; `lose_share`: this share of the replies does
    `delay_seconds`    every reply takes so much longer, and up to `jitter_seconds` more
    `cut_after_bytes`  a connection breaks after so many bytes of replies, in the middle of one
    `slice_bytes`      replies arrive in pieces of so many bytes
    `stalled`          nothing passes in either direction, nothing is closed
    """

    def __init__(self, target: Target, *, seed: int = 0) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random(seed)
        self.links: set[Link] = set()
        self.lose_replies = False
        self.lose_share = self.delay_seconds = self.jitter_seconds = 0.0
        self.cut_after_bytes: int | None = None
        self.slice_bytes: int | None = None
        self._open = asyncio.Event()
        self._open.set()
        self.lost = self.cuts = 0

    def heal(self) -> None:
        self.lose_replies = self.stalled = False
        self.lose_share = self.delay_seconds = self.jitter_seconds = 0.0
        self.cut_after_bytes = self.slice_bytes = None

    @property
    def stalled(self) -> bool:
        return not self._open.is_set()

    @stalled.setter
    def stalled(self, is_stalled: bool) -> None:
        (self._open.clear if is_stalled else self._open.set)()

    def cut(self, at_most: int | None = None) -> int:
        """Break connections that carry something just now; how many."""
        used = [link for link in self.links if link.in_use]
        self._random.shuffle(used)
        for link in used[:at_most]:
            link.abort()
        self.cuts += len(used[:at_most])
        return len(used[:at_most])

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        await stop_listening(self._server)
        for link in self.links:
            link.abort()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # an aborted connection is lost in the next step

    @property
    def port(self) -> int:
        assert self._server
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the other side is not there, or we close
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self._connect()
        link = Link(writer, up_writer)
        self.links.add(link)
        pumps = {
            asyncio.create_task(_pump(reader, lambda data: self._pass_request(link, data))),
            asyncio.create_task(_pump(up_reader, lambda data: self._pass_reply(link, data))),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.links.discard(link)
            writer.close()
            up_writer.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _pass_request(self, link: Link, data: bytes) -> bool:
        await self._open.wait()
        link.owes, link.moved = True, time.monotonic()
        link.server.write(data)
        await link.server.drain()
        return True

    async def _pass_reply(self, link: Link, data: bytes) -> bool:
        if self.lose_replies or (self.lose_share and self._random.random() < self.lose_share):
            self.lost += 1
            return False
        if self.delay_seconds or self.jitter_seconds:
            await asyncio.sleep(self.delay_seconds + self._random.random() * self.jitter_seconds)
        await self._open.wait()
        link.owes, link.moved = False, time.monotonic()
        if self.cut_after_bytes is not None and link.replied + len(data) >= self.cut_after_bytes:
            link.client.write(data[: self.cut_after_bytes - link.replied])
            self.cuts += 1
            return False
        link.replied += len(data)
        for at in range(0, len(data), self.slice_bytes or len(data)):
            link.client.write(data[at : at + (self.slice_bytes or len(data))])
            await link.client.drain()
        return True


async def _pump(reader: asyncio.StreamReader, forward: Callable[[bytes], Awaitable[bool]]) -> None:
    while data := await reader.read(1 << 16):
        if not await forward(data):
            return
