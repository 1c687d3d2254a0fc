"""`bench streams`: a thousand streams that wait, hundreds of clients that hardly read, and everybody back at once.

A scripted engine. Each arm has a gateway of its own, and says what others notice of it, and what it costs.
"""

import asyncio
import json
import random
import resource
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from gateway.machine import raise_file_limit
from gateway.sse import HEARTBEAT
from tests.bench.crowd import Crowd, Shape
from tests.bench.stack import Measured, Stack, stack

CHATS = 20  # people who chat beside them
CHAT_TOKENS, PACE_MS = 40, 20
WARM = 20  # streams that came and went before
UNREAD_TOKENS = 1024
SLOW_BYTES = 100  # a second
SMALL_WINDOW = 4096
SPREAD_SECONDS = 1.0
LONG_MS = 3_600_000
WITHIN_SECONDS = 60.0
SEATS = 1024
ESTABLISHED, CLOSE_WAIT = "01", "08"  # in /proc/net/tcp


class Client(asyncio.Protocol):
    """One raw connection that asks once, and remembers no more than it counts."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.status = 0
        self.beats = 0
        self.asked = time.perf_counter()
        self.told = asyncio.Event()  # something of its answer
        self.told_after = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.status = self.status or int(data[9:12])
        self.beats += data.count(HEARTBEAT)
        if not self.told.is_set() and (b"\n\n" in data or self.status != 200):
            self.told_after = time.perf_counter() - self.asked
            self.told.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.set()


async def connected(address: str, request: bytes, count: int, spread_seconds: float = 0.0) -> list[Client]:
    """So many clients, each of which has heard something of its answer, or was cut."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()

    async def one() -> Client:
        await asyncio.sleep(random.random() * spread_seconds)
        client = Client(request)
        await loop.create_connection(lambda: client, host, int(port))
        await client.told.wait()
        return client

    async with asyncio.timeout(WITHIN_SECONDS):
        return list(await asyncio.gather(*(one() for _ in range(count))))


async def seconds_to_close(clients: list[Client], gateway: str) -> float:
    """Until the gateway holds none of them any more."""
    began = time.perf_counter()
    left = connections(gateway) - len(clients)
    for client in clients:
        client.transport.abort()
    async with asyncio.timeout(WITHIN_SECONDS):
        while connections(gateway) > left:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    return time.perf_counter() - began


def connections(address: str) -> int:
    """That the server at this address has not closed yet."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in (ESTABLISHED, CLOSE_WAIT) for row in rows)


def request_of(on: Stack, method: str, path: str, body: object = None, key: str | None = None) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: {on.gateway}\r\nauthorization: Bearer {key or on.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def chat(on: Stack, tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": on.model, "messages": messages, "stream": True, "max_tokens": tokens, "ignore_eos": True}


def long_answer(on: Stack) -> str:
    """The id of a background response of which the engine says nothing for an hour."""
    on.script(prefill_ms=LONG_MS)
    body = json.dumps({"input": "hello", "background": True}).encode()
    headers = {"authorization": f"Bearer {on.key}", "content-type": "application/json"}
    asked = urllib.request.Request(f"http://{on.gateway}/v1/responses", body, headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(json.loads(answer.read())["id"])


def follower(on: Stack) -> bytes:
    return request_of(on, "GET", f"/v1/responses/{long_answer(on)}?stream=true")


async def chats(on: Stack, seconds: float) -> Crowd:
    """People who chat, one answer after the other."""
    people = {f"p{number}": [{"authorization": f"Bearer {key}"}] for number, key in enumerate(on.keys[1:])}
    async with aiohttp.ClientSession(f"http://{on.gateway}", connector=aiohttp.TCPConnector(limit=0)) as http:
        crowd = Crowd(http, on.model, people)
        await asyncio.gather(*(crowd.always(person, 1, Shape.of(20, CHAT_TOKENS), seconds) for person in people))
    return crowd


def firsts(crowd: Crowd) -> list[float]:
    return crowd.waits({one.person for one in crowd.asked}, 0.0)


def gaps(crowd: Crowd) -> list[float]:
    return [late - early for one in crowd.asked for early, late in zip(one.tokens, one.tokens[1:], strict=False)]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compared(what: str, beside: list[float], alone: list[float], share: float, goal: str) -> str:
    ours, theirs = percentile(beside, share), percentile(alone, share)
    ratio = ours / theirs if theirs else 0.0
    return f"| {CHATS} chats: {what} | {1000 * ours:.1f} ÷ {1000 * theirs:.1f} ms = {ratio:.2f} | {goal} |"


# a thousand that wait -------------------------------------------------------------------------------------------------


async def idle(on: Stack, name: str, request: bytes, count: int, seconds: float, *, beside: bool) -> AsyncIterator[str]:
    gateway = on.under_test
    await seconds_to_close(await connected(on.gateway, request, WARM), on.gateway)
    on.script(prefill_ms=0, pace_ms=PACE_MS)
    alone = await chats(on, seconds) if beside else None
    before = gateway.rss_bytes()
    clients = await connected(on.gateway, request, count, SPREAD_SECONDS)
    each = (gateway.rss_bytes() - before) / count / 1024
    answered = sum(client.status == 200 for client in clients)
    yield f"| {name}: answered | {answered} of {count} | all |"
    yield f"| {name}: RSS of the gateway for each | {each:.1f} KiB | ≤ 32 KiB |"
    used = gateway.cpu_seconds()
    await asyncio.sleep(seconds)
    yield f"| {name}: CPU while nothing happens | {100 * (gateway.cpu_seconds() - used) / seconds:.1f} % | – |"
    if alone is not None:
        with_them = firsts(await chats(on, seconds))
        yield compared("TTFT p50, beside them ÷ alone", with_them, firsts(alone), 0.5, "≤ 1.05")
        yield compared("TTFT p99, beside them ÷ alone", with_them, firsts(alone), 0.99, "≤ 1.05")
        yield f"| {name}: heard a heartbeat | {sum(client.beats > 0 for client in clients)} of {count} | all |"
    yield f"| {name}: to close all | {await seconds_to_close(clients, on.gateway):.2f} s | 0.1 s |"


# hundreds that hardly read --------------------------------------------------------------------------------------------


async def unread(on: Stack, count: int, pace_ms: int) -> AsyncIterator[str]:
    gateway = on.under_test
    on.script(answer="word " * (UNREAD_TOKENS + 8), prefill_ms=0, pace_ms=pace_ms)
    seconds = UNREAD_TOKENS * pace_ms / 1000
    alone = gaps(await chats(on, seconds))
    async with readers(on, 2 * count, 1 << 16, pause_seconds=0):
        reading = gaps(await chats(on, seconds))
        await until_nothing_runs(on)
    before, kernel_before = gateway.rss_bytes(), kernel_bytes()
    async with readers(on, count, 0), readers(on, count, SLOW_BYTES):
        began = time.perf_counter()
        beside = gaps(await chats(on, seconds))
        await until_nothing_runs(on)
        took = time.perf_counter() - began
        each = (gateway.rss_bytes() - before) / (2 * count) / 1024
        kernel = (kernel_bytes() - kernel_before) / (2 * count) / 1024
    who = f"{count} read nothing, {count} read {SLOW_BYTES} bytes a second"
    yield f"| {who}: all is taken from the engine in | {took:.1f} s (it needs {seconds:.1f}) | full speed |"
    yield f"| {who}: RSS of the gateway for each | {each:.0f} KiB | – |"
    yield f"| {who}: memory of the kernel for each | {kernel:.0f} KiB | ≤ 256 KiB |"
    yield compared("inter-token p99, beside them ÷ alone", beside, alone, 0.99, "≤ 1.05")
    yield compared("inter-token p99, beside them ÷ beside as many who read", beside, reading, 0.99, "–")


@asynccontextmanager
async def readers(on: Stack, count: int, bytes_at_once: int, pause_seconds: float = 1.0) -> AsyncIterator[None]:
    """Clients that have asked for an answer and read so much of it."""
    loop = asyncio.get_running_loop()
    host, _, port = on.gateway.rpartition(":")
    request = request_of(on, "POST", "/v1/chat/completions", chat(on, UNREAD_TOKENS))
    clients = [socket.socket() for _ in range(count)]

    async def read(client: socket.socket) -> None:
        while bytes_at_once:
            await loop.sock_recv(client, bytes_at_once)
            await asyncio.sleep(pause_seconds)

    tasks = []
    try:
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW if pause_seconds else 1 << 16)
            client.setblocking(False)
            await loop.sock_connect(client, (host, int(port)))
            await loop.sock_sendall(client, request)
            tasks.append(asyncio.create_task(read(client)))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            client.close()


def kernel_bytes() -> int:
    """What TCP holds on this machine."""
    words = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
    ).split()
    return int(words[words.index("mem") + 1]) * resource.getpagesize()


async def until_nothing_runs(on: Stack) -> None:
    async with asyncio.timeout(WITHIN_SECONDS), aiohttp.ClientSession(f"http://{on.gateway}") as http:
        while True:
            async with http.get("/metrics") as told:
                if "\ndeskmate_requests_running 0.0" in await told.text():
                    return
            await asyncio.sleep(0.1)


# everybody back at once -----------------------------------------------------------------------------------------------


async def herd(on: Stack, count: int) -> AsyncIterator[str]:
    request = follower(on)
    for client in await connected(on.gateway, request, count, SPREAD_SECONDS):
        client.transport.abort()
    gateway = await asyncio.to_thread(on.restart)
    before = gateway.rss_bytes()
    clients = await connected(on.gateway, request, count, SPREAD_SECONDS)
    waits = [client.told_after for client in clients if client.status == 200]
    refused = count - len(waits)
    told = f"{percentile(waits, 0.5):.2f} / {percentile(waits, 0.99):.2f} s"
    yield f"| {count} followers back in a second: first event p50 / p99 | {told} | – |"
    yield f"| back at once: refused or cut | {refused} of {count} | 0 |"
    peak = peak_bytes(gateway)
    yield f"| back at once: RSS of the gateway before / at most | {before / 1e6:.0f} / {peak / 1e6:.0f} MB | – |"
    yield f"| back at once: to close all | {await seconds_to_close(clients, on.gateway):.2f} s | – |"


def peak_bytes(of: Measured) -> int:
    lines = Path(f"/proc/{of.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# together -------------------------------------------------------------------------------------------------------------


def many_streams(count: int) -> Iterator[str]:
    """`count` streams that wait or come back; two fifths of it hardly read."""
    raise_file_limit()
    long = count >= 1000
    yield "| what | measured | goal |"
    yield "|---|---|---|"
    with stack(seats=SEATS, people=[1] * (CHATS + 1)) as on:
        following = idle(on, "followers of one answer", follower(on), count, 12 if long else 2, beside=True)
        yield from asyncio.run(lines(following))
        on.restart()
        yield from asyncio.run(lines(unread(on, count // 5, 20 if long else 4)))
        on.restart()
        yield from asyncio.run(lines(herd(on, count)))
    with stack(seats=1, more={"DESKMATE_MAX_WAIT_SECONDS": "1e9"}) as on:
        on.script(prefill_ms=LONG_MS)
        request = request_of(on, "POST", "/v1/chat/completions", chat(on, 100))
        waiting = idle(on, "in line for a seat", request, count, 5 if long else 2, beside=False)
        yield from asyncio.run(lines(waiting))


async def lines(of: AsyncIterator[str]) -> list[str]:
    return [line async for line in of]
