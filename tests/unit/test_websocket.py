"""One WebSocket connection on a real server: whoever does not read or answer holds little, and not for long."""

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import connect

from gateway.websocket import SocketProtocol

PIECE = "x" * 1000
HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
).encode()
SMALL = 64 << 10


class Talker:
    """An application that says the same without end, or as often as it is told; notes how it ended."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most = most
        self.told = 0
        self.begun = asyncio.Event()
        self.ended: asyncio.Future[type[BaseException] | None] = asyncio.get_running_loop().create_future()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
            await send({"type": "websocket.accept"})
            while self.told < self.most:
                await send({"type": "websocket.send", "text": PIECE})
                self.told += 1
                self.begun.set()
            while (await receive())["type"] != "websocket.disconnect":
                pass
        except BaseException as ending:
            self.ended.set_result(type(ending))
            raise
        self.ended.set_result(None)


@asynccontextmanager
async def serving(app: Talker, ping_seconds: float) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws=SocketProtocol,
        lifespan="off",
        log_config=None,
        ws_ping_interval=ping_seconds,
        ws_ping_timeout=ping_seconds,
        ws_per_message_deflate=False,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def stalling(port: int) -> AsyncIterator[socket.socket]:
    """A client that has shaken hands and reads nothing from then on."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, HANDSHAKE)
        yield client
    finally:
        client.close()


def held(server: uvicorn.Server) -> int:
    """Bytes that wait in this process to be sent."""
    return sum(connection.transport.get_write_buffer_size() for connection in server.server_state.connections)


async def until_still(app: Talker) -> None:
    """Wait until nothing more is taken from the application."""
    told = -1
    while told != app.told:
        told = app.told
        await asyncio.sleep(0.1)


async def test_who_does_not_read_is_cut_when_they_do_not_answer_a_ping() -> None:
    app = Talker()
    async with serving(app, ping_seconds=0.2) as (_, port), stalling(port), asyncio.timeout(10):
        assert (await app.ended).__name__ == "ClientDisconnected"


async def test_who_does_not_read_holds_little_of_ours_also_when_they_ping() -> None:
    app = Talker()
    async with serving(app, ping_seconds=60) as (server, port), stalling(port) as client, asyncio.timeout(20):
        await app.begun.wait()
        await until_still(app)
        before = held(server)
        ping = struct.pack("!BB4s", 0x89, 0x80 | 125, bytes(4)) + b"x" * 125
        await asyncio.get_running_loop().sock_sendall(client, ping * 10_000)
        await asyncio.sleep(0.2)
        assert held(server) < before + len(ping) and before < 200_000


async def test_who_answers_pings_stays_and_hears_everything() -> None:
    app = Talker(most=50)
    async with serving(app, ping_seconds=0.1) as (_, port), asyncio.timeout(10):
        async with connect(f"ws://127.0.0.1:{port}/") as client:
            for _ in range(50):
                assert await client.recv() == PIECE
            await asyncio.sleep(0.5)
            assert not app.ended.done()
        assert await app.ended is None
