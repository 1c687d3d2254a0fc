"""One connection of the server, by itself: what is left of it when its client is gone."""

import asyncio
import socket
import struct
from pathlib import Path

import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from gateway import server
from gateway.settings import Settings

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


async def test_a_client_that_resets_an_idle_connection_leaves_no_timer_behind() -> None:
    config = uvicorn.Config(PlainTextResponse("yes"), log_config=None, timeout_keep_alive=75)
    config.load()
    settings = Settings(redis_url="unix:///unused", secret_file=Path("/unused"))
    state = ServerState()
    protocol = server._protocol(settings)(config, state, {})
    listening = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"yes")).startswith(b"HTTP/1.1 200")
        assert protocol.timeout_keep_alive_task is not None
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        writer.transport.abort()
        async with asyncio.timeout(30):
            while state.connections:  # noqa: ASYNC110 - a set has no event
                await asyncio.sleep(0.01)
    assert protocol.timeout_keep_alive_task is None
