"""Whoever leaves gives back what they had: in every phase, on every route, however often. Nothing is left anywhere.

The long form is `./deskmate test --cancels 1000`, so many of each kind.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

SHORT_FORM = 12  # tries of each kind
AT_ONCE = 4  # as many as there are seats
BACK_SECONDS = 10.0  # the promise is one; a busy machine is no failure
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
RESPONSE = {"input": "hello", "store": False}
PREFILL = {"prefill_ms": 600_000}
WRITING = {"pace_ms": 20, "answer": " word" * 100_000}

Try = Callable[[GatewayProcess, httpx2.AsyncClient, FakeWorker], Awaitable[None]]


async def _streamed(http: httpx2.AsyncClient, path: str, body: Mapping[str, Any], until: bytes) -> None:
    """Leave in the middle of a stream, once it said `until`."""
    async with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        heard = b""
        async for piece in answer.aiter_raw():
            heard += piece
            if until in heard:
                return


async def _whole(http: httpx2.AsyncClient, worker: FakeWorker, path: str, body: Mapping[str, Any]) -> None:
    """Leave while the engine works on an answer that is not streamed. `user` tells it from the others'."""
    asked = asyncio.create_task(http.post(path, json=body))
    before = len(worker.generations)
    with suppress(TimeoutError):  # another one's came in between: then this one is left at any moment
        await worker.until(lambda w: len(w.generations) > before, 2.0)
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked


async def _socket(gateway: GatewayProcess, http: httpx2.AsyncClient, until: str) -> None:
    url = gateway.url.replace("http", "ws", 1) + "/v1/responses"
    async with connect(url, additional_headers={"authorization": http.headers["authorization"]}) as socket:
        await socket.send(json.dumps({"type": "response.create", **RESPONSE}))
        while until not in str(await socket.recv()):
            pass


async def _background(http: httpx2.AsyncClient) -> None:
    begun = (await http.post("/v1/responses", json={"input": "hello", "background": True})).json()
    ended = (await http.post(f"/v1/responses/{begun['id']}/cancel")).json()
    assert ended["status"] == "cancelled"


IN_LINE = b'"position":1'
DELTA = b"output_text.delta"
KINDS: Mapping[str, tuple[Mapping[str, Any], Try]] = {
    "a response that reads": (PREFILL, lambda g, http, w: _streamed(http, "/v1/responses", RESPONSE, b"in_progress")),
    "a response that writes": (WRITING, lambda g, http, w: _streamed(http, "/v1/responses", RESPONSE, DELTA)),
    "a chat that writes": (WRITING, lambda g, http, w: _streamed(http, "/v1/chat/completions", CHAT, b"word")),
    "a message that writes": (
        WRITING,
        lambda g, http, w: _streamed(http, "/v1/messages", {**CHAT, "max_tokens": 500}, b"text_delta"),
    ),
    "a whole response": (PREFILL, lambda g, http, w: _whole(http, w, "/v1/responses", RESPONSE)),
    "a whole chat": (PREFILL, lambda g, http, w: _whole(http, w, "/v1/chat/completions", CHAT)),
    "a socket that writes": (WRITING, lambda g, http, w: _socket(g, http, "output_text.delta")),
    "in the background": (WRITING, lambda g, http, w: _background(http)),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_whoever_leaves_gives_back_everything(
    ready: GatewayProcess,
    scripted: FakeWorker,
    one_redis: RedisServer,
    person: str,
    pytestconfig: pytest.Config,
    kind: str,
) -> None:
    script, attempt = KINDS[kind]
    scripted.script(**script)
    async with _as(ready, person) as http:
        await attempt(ready, http, scripted)  # what is opened once stays open
        await _all_is_back(ready, scripted, one_redis, open_files=None)
        before = _open_files(ready)
        await _often(pytestconfig, lambda: attempt(ready, http, scripted))
        await _all_is_back(ready, scripted, one_redis, before)


async def test_whoever_leaves_the_line_leaves_no_gap_in_it(
    ready: GatewayProcess, scripted: FakeWorker, one_redis: RedisServer, person: str, pytestconfig: pytest.Config
) -> None:
    scripted.script(**PREFILL)
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(_as(ready, f"{person} crowd {n}")) for n in range(AT_ONCE)]
        http = await stack.enter_async_context(_as(ready, person))
        holding = [asyncio.create_task(one.post("/v1/responses", json=RESPONSE, timeout=None)) for one in crowd]
        await scripted.until(lambda worker: len(worker.generations) == AT_ONCE)
        line = asyncio.Semaphore(1)  # one after the other, so that each is the first in line

        async def attempt() -> None:
            async with line:
                await _streamed(http, "/v1/responses", RESPONSE, IN_LINE)

        await _often(pytestconfig, attempt)
        assert len(scripted.generations) == AT_ONCE
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        await _all_is_back(ready, scripted, one_redis, open_files=None)


async def test_what_was_written_for_nobody_is_counted(ready: GatewayProcess, scripted: FakeWorker, person: str) -> None:
    scripted.script(**WRITING)
    before = await _value(ready, 'deskmate_wasted_tokens_total{route="chat_completions"}')
    async with _as(ready, person) as http:
        await _streamed(http, "/v1/chat/completions", CHAT, b"word")
    await _until(lambda: _grown(ready, 'deskmate_wasted_tokens_total{route="chat_completions"}', before))


# help -----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _as(gateway: GatewayProcess, person: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"authorization": f"Bearer {await gateway.key(person)}"}
    async with httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=60) as http:
        yield http


async def _often(config: pytest.Config, attempt: Callable[[], Awaitable[None]]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await attempt()

    async with asyncio.TaskGroup() as tries:
        for _ in range(config.getoption("--cancels") or SHORT_FORM):
            tries.create_task(one())


async def _all_is_back(gateway: GatewayProcess, worker: FakeWorker, redis: RedisServer, open_files: int | None) -> None:
    """No request runs at the engine, holds a seat or waits; the line's books are closed, no connection stayed open."""
    await worker.until(lambda w: all(record.state != "running" for record in w.generations), BACK_SECONDS)
    await _until(lambda: _is_back(gateway, redis))
    if open_files is not None:  # a few are those of connections that stay open for the next
        await _until(lambda: asyncio.to_thread(lambda: _open_files(gateway) <= open_files + 2 * AT_ONCE))


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(BACK_SECONDS):
        while not await true():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)


async def _is_back(gateway: GatewayProcess, redis: RedisServer) -> bool:
    running = await _value(gateway, "deskmate_requests_running")
    waiting = await _value(gateway, "deskmate_requests_waiting")
    flying, reserved = cast(list[bytes], redis.admin("HMGET", "dm:line:clock", "flying", "reserved"))
    return not (running or waiting or redis.admin("HLEN", "dm:line:requests") or float(flying) or float(reserved))


async def _grown(gateway: GatewayProcess, metric: str, before: float) -> bool:
    return await _value(gateway, metric) > before


async def _value(gateway: GatewayProcess, metric: str) -> float:
    async with httpx2.AsyncClient(base_url=gateway.url) as http:
        told = (await http.get("/metrics")).text
    found = re.search(rf"^{re.escape(metric)} (\S+)$", told, re.MULTILINE)
    assert found, metric
    return float(found[1])


def _open_files(gateway: GatewayProcess) -> int:
    assert gateway.process
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))
