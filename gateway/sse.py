"""Server-sent events: how one is written, and a response that streams them and closes its generator itself.

Knows nothing of what the events say. Pure ASGI: no middleware, no queue and no task per event.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")

HEARTBEAT_SECONDS = 10.0
HEARTBEAT = b": heartbeat\n\n"
DONE = b"data: [DONE]\n\n"
EXTENSION = b"event: deskmate:"  # how an event of ours begins

_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def event(payload: dict[str, Any]) -> bytes:
    """One event whose name is its payload's type."""
    return b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), _encode(payload))


def payloads(data: bytes) -> Iterator[bytes]:
    """The JSON of each event in `data`, which was written for a stream. Heartbeats and the stream's end have none."""
    for frame in data.split(b"\n\n"):
        if frame.startswith(b"event: "):
            yield frame.partition(b"\ndata: ")[2]


class EventStream:
    """An ASGI response of whole events.

    When the client leaves, the generator is cancelled where it waits and closed before the response returns
    (a server that only drops it leaves that to the garbage collector). Each yielded bytes is one send.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str] | None = None,
        on_end: Callable[[], None] | None = None,  # called in every case, also when the client left before the start
    ) -> None:
        self._events = events
        self._on_end = on_end
        self._headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # nginx passes it on as it comes
            **(headers or {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(send))
        leaver = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((writer, leaver), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaver.cancel()
            writer.cancel()
            await asyncio.wait((writer, leaver))
            if self._on_end is not None:
                self._on_end()
        if not writer.cancelled():
            writer.result()  # an error of ours goes up to the one place that counts it

    async def _write(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self._head()})
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                del data  # not kept until the next comes
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _head(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode()) for name, value in self._headers.items()]


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`, or None when the client leaves first; then `work` is cancelled and has ended."""
    worker, leaver = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((worker, leaver), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaver.cancel()
        if not worker.done():
            worker.cancel()
        await asyncio.wait((worker, leaver))
    return None if worker.cancelled() else worker.result()
