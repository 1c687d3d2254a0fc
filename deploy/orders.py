"""Orders to a running supervisor, over a socket in its private folder: one word, one answer. Knows no part."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from deploy.errors import NotRunning, Refusal

DONE = "done"
LONGEST_ORDER_BYTES = 100


async def obey(path: Path, do: Callable[[str], Awaitable[None]]) -> None:
    """Takes one order after the other, for ever. A refusal of `do` is the answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection, suppress(OSError):  # whoever asked may have left
                connection.setblocking(False)
                await _answer(connection, do)


async def _answer(connection: socket.socket, do: Callable[[str], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    order = await loop.sock_recv(connection, LONGEST_ORDER_BYTES)
    try:
        await do(order.decode())
        answer = DONE
    except Refusal as refusal:
        answer = str(refusal)
    await loop.sock_sendall(connection, answer.encode())


def ask(path: Path, order: str) -> None:
    """Gives an order and waits until it is carried out. Raises the Refusal that it met."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(order.encode())
            answer = connection.makefile().read()
        except OSError:
            answer = ""
    if not answer:
        raise NotRunning("Deskmate was stopped meanwhile")
    if answer != DONE:
        raise Refusal(answer)
