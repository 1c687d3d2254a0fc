"""Ends a process by SIGKILL at a chosen call to Redis: before it is sent, or after, when its answer is never read."""

import asyncio
import os
import signal
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.redis_client import RedisClient
from tests.servers import RedisServer


class _Mortal(RedisClient):
    """Dies at the n-th call; an odd one has reached the server by then."""

    left = 0

    async def call(self, *command: Any) -> Any:
        return await self._live(super().call(*command))

    async def run(self, script: str, keys: Any = (), args: Any = ()) -> Any:
        return await self._live(super().run(script, keys, args))

    async def _live(self, call: Awaitable[Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await call
        if self.left == 1 and self.odd:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    odd = False


def killed_at(call: int, server: RedisServer, work: Callable[[RedisClient], Awaitable[None]], **options: Any) -> bool:
    """Do the work in a process of its own that is killed at that call. False: it had come to its end before."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(_work(call, server, work, options))
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run on in the child
            traceback.print_exc()
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), "see above"
    return os.WIFSIGNALED(status)


async def _work(
    call: int, server: RedisServer, work: Callable[[RedisClient], Awaitable[None]], options: dict[str, Any]
) -> None:
    client = _Mortal(server.url, server.password, **options)
    client.left = call
    client.odd = bool(call % 2)
    try:
        await work(client)
    finally:
        await client.aclose()
