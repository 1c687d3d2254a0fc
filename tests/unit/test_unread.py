"""Connections that nobody reads, on real sockets; the clock is turned by hand."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.unread import Unread

PATIENCE_SECONDS = 120.0
SMALL = 16 << 10
MORE_THAN_FITS = b"x" * (4 << 20)


class Writer(asyncio.Protocol):
    """The server's end of one connection, with more to say than any buffer of the kernel takes."""

    def __init__(self) -> None:
        self.made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(MORE_THAN_FITS)
        self.made.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Writer, asyncio.Transport, socket.socket]]:
    """A connection with bytes that wait, and its client, who has read nothing yet."""
    loop = asyncio.get_running_loop()
    writer = Writer()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        client.setblocking(False)
        async with await loop.create_server(lambda: writer, sock=listener), asyncio.timeout(30):
            await loop.sock_connect(client, listener.getsockname())
            transport = await writer.made
            yield writer, transport, client
            transport.abort()
            await writer.lost


async def read_some(transport: asyncio.Transport, client: socket.socket) -> None:
    """Read until it is seen at the other end."""
    waiting = transport.get_write_buffer_size()
    while transport.get_write_buffer_size() == waiting:
        await asyncio.get_running_loop().sock_recv(client, SMALL)
        await asyncio.sleep(0)


async def until_cut(unread: Unread, writer: Writer, transport: asyncio.Transport, now: float) -> None:
    """What is under way in the kernel may still be taken: look until it stands still."""
    while not writer.lost.done():
        now += PATIENCE_SECONDS + 1
        unread.look([transport], now)
        await asyncio.sleep(0.02)


async def test_whoever_reads_nothing_is_cut_when_the_patience_is_over() -> None:
    unread = Unread(PATIENCE_SECONDS)
    async with connected() as (writer, transport, _):
        for now in (0.0, 60.0, PATIENCE_SECONDS):
            unread.look([transport], now)
        assert not transport.is_closing()
        await until_cut(unread, writer, transport, PATIENCE_SECONDS)


async def test_a_finished_answer_that_nobody_reads_does_not_linger() -> None:
    unread = Unread(PATIENCE_SECONDS)
    async with connected() as (writer, transport, _):
        transport.close()  # waits until all is sent
        unread.look([transport], 0.0)
        assert not writer.lost.done()
        await until_cut(unread, writer, transport, 0.0)


async def test_whoever_reads_slowly_stays() -> None:
    unread = Unread(PATIENCE_SECONDS)
    async with connected() as (writer, transport, client):
        for turn in range(5):
            unread.look([transport], turn * PATIENCE_SECONDS)
            await read_some(transport, client)
        unread.look([transport], 5 * PATIENCE_SECONDS)
        assert not transport.is_closing()
        await until_cut(unread, writer, transport, 5 * PATIENCE_SECONDS)


async def test_whoever_has_nothing_to_be_sent_stays_and_is_not_remembered() -> None:
    unread = Unread(PATIENCE_SECONDS)
    async with connected() as (_, transport, client):
        unread.look([transport], 0.0)
        while transport.get_write_buffer_size():
            await asyncio.get_running_loop().sock_recv(client, len(MORE_THAN_FITS))
        unread.look([transport], 1000.0)
        assert not transport.is_closing() and not unread._taken
