"""Hangs up on requests whose key, session or person stops being good while they are answered. Knows no routes.

To the application it is a client that left: whatever it does then is right here too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from gateway.errors import Forbidden, Unauthenticated, Unavailable

ROUND_SECONDS = 0.4


class Exchange(Protocol):
    """A request being answered. `at_end` is called when it is over."""

    at_end: Callable[[], Any] | None

    def hang_up(self) -> None: ...


class Watch:
    """`add` what is open; `run` looks at all of it again and again."""

    def __init__(self) -> None:
        self._open: dict[Exchange, Callable[[], Awaitable[Any]]] = {}

    def add(self, exchange: Exchange, identify: Callable[[], Awaitable[Any]]) -> None:
        """`identify` raises Unauthenticated or Forbidden once the caller may no longer ask."""
        self._open[exchange] = identify
        exchange.at_end = lambda: self._open.pop(exchange, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            for exchange, identify in list(self._open.items()):
                with suppress(Unavailable):  # nobody can be asked now: nobody is thrown out
                    try:
                        await identify()
                    except (Unauthenticated, Forbidden):
                        exchange.hang_up()
