"""How a server in the tests' own process stops listening. Imports little: the scripted worker runs alone, too."""

import asyncio


async def stop_listening(server: asyncio.Server) -> None:
    """Close `server`; whoever was being let in at that moment is inside when this returns.

    Without the pause CPython leaves such a connection's socket to the garbage collector, and whichever test runs
    then hears of it (CPython's issue 109564).
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(3):  # accepted, given a transport, made known to the protocol
        await asyncio.sleep(0)
    server.close()
