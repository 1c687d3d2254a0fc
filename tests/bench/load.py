"""A load generator in a process of its own: many raw HTTP connections, few cycles. Knows no gateway.

Reads one job (JSON, the fields of `Job`) a line from standard input and writes one result a line.
"""

import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass

import msgspec


class Job(msgspec.Struct):
    address: str  # host:port
    path: str
    body: dict[str, object]
    headers: dict[str, str] = {}
    streams: int = 1
    answers: int = 1  # of each stream, one after the other
    first: str = '{"content":"'  # what stands in the first event that carries a token
    end: str = "[DONE]"  # what stands at the end of an answer; empty: a whole answer, ended by its length
    spread_seconds: float = 0.5  # the streams begin within this time


class Result(msgspec.Struct):
    answers: int
    seconds: float
    first_ms: list[float]  # p50, p99 of the time to the first token
    gap_ms: list[float]  # p50, p99 of the time between two reads of one answer
    errors: int
    example: str  # the end of one answer that broke off


@dataclass(slots=True)
class Seen:
    first: list[float]
    gaps: list[float]
    errors: int = 0
    example: bytes = b""


class Client(asyncio.Protocol):
    """One keep-alive connection that asks the same again and again."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, job: Job, seen: Seen, done: asyncio.Future[None]) -> None:
        self.request, self.seen, self.done = request, seen, done
        self.first, self.end = job.first.encode(), job.end.encode()
        self.left = job.answers
        self.tail = b""
        self.asked = self.last = 0.0
        self.begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.ask()

    def ask(self) -> None:
        self.tail, self.begun = b"", False
        self.asked = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        seen = self.tail + data
        if self.begun:
            self.seen.gaps.append(now - self.last)
        elif self.first in seen:
            self.begun = True
            self.seen.first.append(now - self.asked)
        elif seen.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
            self.seen.example = seen
            return self.transport.close()
        self.last = now
        if self.end in seen if self.end else is_whole(seen):
            return self.next_answer()
        self.tail = seen[-32:] if self.end else seen
        return None

    def next_answer(self) -> None:
        self.left -= 1
        # The end of the chunked coding may still come: the next answer begins with a status line all the same.
        if self.left:
            asyncio.get_running_loop().call_soon(self.ask)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.left:
            self.seen.errors += 1
            self.seen.example = self.seen.example or self.tail
        if not self.done.done():
            self.done.set_result(None)


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


async def run(job: Job) -> Result:
    body = msgspec.json.encode(job.body)
    headers = {"host": job.address, "content-type": "application/json", "content-length": str(len(body)), **job.headers}
    head = f"POST {job.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    seen = Seen([], [])
    loop = asyncio.get_running_loop()
    host, _, port = job.address.rpartition(":")
    began = time.perf_counter()

    async def stream() -> None:
        await asyncio.sleep(random.random() * job.spread_seconds)
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda: Client(head.encode() + body, job, seen, done), host, int(port))
        await done

    await asyncio.gather(*(stream() for _ in range(job.streams)))
    seconds = time.perf_counter() - began
    return Result(
        job.streams * job.answers,
        seconds,
        quantiles(seen.first),
        quantiles(seen.gaps),
        seen.errors,
        seen.example[-400:].decode("utf-8", "replace"),
    )


def quantiles(seconds: list[float]) -> list[float]:
    if len(seconds) < 2:
        return [round(1000 * value, 3) for value in seconds * 2] or [0.0, 0.0]
    hundredths = statistics.quantiles(seconds, n=100)
    return [round(1000 * hundredths[49], 3), round(1000 * hundredths[98], 3)]


async def main() -> None:
    for line in sys.stdin.buffer:
        result = await run(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
