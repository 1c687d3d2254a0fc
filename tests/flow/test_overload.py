"""A gateway that runs short: what can wait is refused first, then every new answer; the rest goes on, and it heals.

Open files and the storage's time do run short here. Of memory and disk the gateway is told so, by a file that stands
for the reading: to fill those of the machine would break more than the gateway.
"""

import asyncio
import json
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.proxy import Proxy
from tests.servers import RedisServer

TOLD = """
import json, os, pathlib, sys
from gateway.__main__ import main
from gateway.machine import Machine
told = pathlib.Path(os.environ["TOLD"])
Machine.memory = lambda self: json.loads(told.read_text())["memory"]
Machine.disk = lambda self: json.loads(told.read_text())["disk"]
sys.exit(main())
"""
FILES = 400  # that the gateway may open
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
ROUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"model": "fake", **CHAT}),
    ("/v1/chat/completions", {"model": "fake", **CHAT, "stream": True}),
    ("/v1/completions", {"model": "fake", "prompt": "hello"}),
    ("/v1/messages", {"model": "fake", **CHAT, "max_tokens": 9}),
    ("/v1/responses", {"input": "hello"}),
    ("/v1/responses", {"input": "hello", "stream": True, "store": False}),
    ("/v1/responses", {"input": "hello", "background": True}),
    ("/v1/responses/compact", {"model": "fake", "input": "hello"}),
)
Strain = Callable[[], Awaitable[None]]


class Desk:
    """One person before a gateway, over connections that are open already."""

    def __init__(self, gateway: GatewayProcess, worker: FakeWorker, http: httpx2.AsyncClient) -> None:
        self.gateway, self.worker, self.http = gateway, worker, http

    async def overload(self) -> dict[str, str]:
        answer = await self.http.get("/readyz")
        assert answer.status_code == 200, "who is overloaded can still be read and stopped"
        found: dict[str, str] = answer.json()["overload"]
        return found

    async def until(self, overload: dict[str, str]) -> None:
        async with asyncio.timeout(60):
            while await self.overload() != overload:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)

    async def refusal(self, path: str, body: dict[str, Any], **headers: str) -> tuple[str, httpx2.Headers]:
        """The words and the headers."""
        answer = await self.http.post(path, json=body, headers=headers)
        error = answer.json()["error"]
        assert answer.status_code == 503, error
        messages = path == "/v1/messages"
        assert error["type" if messages else "code"] == ("overloaded_error" if messages else "overloaded")
        return error["message"], answer.headers

    async def refusals(self, more: dict[str, Any]) -> list[tuple[str, httpx2.Headers]]:
        return await asyncio.gather(*(self.refusal(path, body | more) for path, body in ROUTES))


@pytest.fixture
async def open_desk(one_redis: RedisServer, scripted: FakeWorker, tmp_path: Path) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def start(**environment: str) -> Desk:
            program = ("-c", TOLD) if "TOLD" in environment else ("-m", "gateway")
            made = GatewayProcess(one_redis, scripted.url, environment, program=program)
            gateway = await asyncio.to_thread(stack.enter_context, made)
            await gateway.until_ready()
            headers = {"authorization": f"Bearer {await gateway.key('ann')}"}
            http = httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=60)
            return Desk(gateway, scripted, await stack.enter_async_context(http))

        yield start


async def climb(desk: Desk, name: str, words: str, tighten: Strain, fill: Strain, ease: Strain) -> None:
    """Up both rungs and down again, with answers under way all the time."""
    http = desk.http
    kept = (await http.post("/v1/responses", json={"input": "to be kept"})).json()
    gone = (await http.post("/v1/responses", json={"input": "to be deleted"})).json()
    desk.worker.script(pace_ms=100, answer="word " * 600)
    running = [asyncio.create_task(whole(http, path, body)) for path, body in (ROUTES[1], ROUTES[5])]
    post = {"input": "hello", "background": True}
    begun = (await http.post("/v1/responses", json=post, headers={"idempotency-key": f"{name} once"})).json()
    await desk.worker.until(lambda worker: len(worker.generations) >= 5, 60)
    assert await desk.overload() == {}

    await tighten()
    await desk.until({name: "tight"})
    for said, headers in await desk.refusals({"service_tier": "flex"}):
        assert words in said and "flex" in said
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("30", "30000")
    other = (await http.post("/v1/responses", json=post)).json()
    assert other["status"] in ("queued", "in_progress"), "what cannot wait is taken"

    await fill()
    await desk.until({name: "full"})
    asked = len(desk.worker.generations)
    for said, headers in await desk.refusals({}):
        assert words in said and (headers["retry-after"], headers["retry-after-ms"]) == ("5", "5000")
    again, found, listed, used, deleted, cancelled, signed, new = await asyncio.gather(
        http.post("/v1/responses", json=post, headers={"idempotency-key": f"{name} once"}),
        http.get(f"/v1/responses/{kept['id']}"),
        http.get("/v1/conversations"),
        http.get("/v1/usage"),
        http.delete(f"/v1/responses/{gone['id']}"),
        http.post(f"/v1/responses/{other['id']}/cancel"),
        http.post("/auth/login", json={"name": "ann", "password": "not hers"}),
        desk.refusal("/v1/responses", {"input": "hello"}, **{"idempotency-key": f"{name} new"}),
    )
    assert again.json()["id"] == begun["id"], "a repeat finds the answer that has begun"
    assert words in new[0] and len(desk.worker.generations) == asked
    assert found.json()["status"] == "completed" and listed.status_code == used.status_code == 200
    assert deleted.json()["deleted"] is True and cancelled.json()["status"] == "cancelled"
    assert signed.status_code == 401
    measured = (await http.get("/metrics")).text
    assert f'deskmate_overload_rung{{resource="{name}"}} 2.0' in measured
    assert 'deskmate_refusals_total{code="overloaded"} 0' not in measured

    desk.worker.script(pace_ms=0)
    for text in await asyncio.gather(*running):
        assert text.count("word") >= 600 and text.endswith("[DONE]\n\n")
    await ease()
    await desk.until({})
    desk.worker.script(answer=None)
    flexible = {**ROUTES[0][1], "service_tier": "flex"}
    assert (await http.post(ROUTES[0][0], json=flexible)).status_code == 200


async def whole(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> str:
    answer = await http.post(path, json=body | {"max_tokens": 1000} if "messages" in body else body)
    assert answer.status_code == 200
    return answer.text


async def test_little_memory_or_disk_that_it_is_told_of(open_desk, tmp_path: Path):
    told = tmp_path / "told"

    def tell(share: float, name: str = "memory") -> Strain:
        async def change() -> None:
            new = tmp_path / "new"
            new.write_text(json.dumps({"memory": 0.1, "disk": 0.1, name: share}))
            new.replace(told)

        return change

    await tell(0.5)()
    desk = await open_desk(TOLD=str(told))
    await climb(desk, "memory", "short of memory", tell(0.92), tell(0.96), tell(0.5))
    await tell(0.96, "disk")()
    await desk.until({"disk": "full"})
    assert "disk is nearly full" in (await desk.refusal(*ROUTES[0]))[0]
    url = desk.gateway.url.replace("http", "ws", 1) + "/v1/responses"
    async with connect(url, additional_headers={"authorization": desk.http.headers["authorization"]}) as connection:
        for flex in ({"service_tier": "flex"}, {}):
            await connection.send(json.dumps({"type": "response.create", "input": "hello", **flex}))
            refused = json.loads(await connection.recv())
            assert (refused["type"], refused["status"], refused["error"]["code"]) == ("error", 503, "overloaded")
    await tell(0.5)()
    await desk.until({})


async def test_a_slow_storage(open_desk, one_redis: RedisServer):
    async with Proxy(one_redis.socket) as wire:

        def slow(seconds: float) -> Strain:
            async def change() -> None:
                wire.delay_seconds = seconds

            return change

        desk = await open_desk(DESKMATE_REDIS_URL=f"redis://deskmate@127.0.0.1:{wire.port}/0")
        await climb(desk, "redis", "storage answers slowly", slow(0.4), slow(0.8), slow(0.0))


async def test_connections_that_take_all_open_files(open_desk):
    desk = await open_desk()
    pid, idle = desk.gateway.process.pid, []
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, hard))

    def open_up_to(share: float) -> Strain:
        async def change() -> None:
            idle.extend(await asyncio.to_thread(connections, desk.gateway.port, round(FILES * share) - files_of(pid)))

        return change

    async def close() -> None:
        while idle:
            idle.pop().close()

    await climb(desk, "files", "connections", open_up_to(0.85), open_up_to(0.91), close)

    while (answer := await asyncio.to_thread(greeted, desk.gateway.port, idle)).startswith(b"HTTP/1.1 200"):
        assert files_of(pid) < FILES, "the last ones are kept"
    assert answer.startswith(b"HTTP/1.1 503") and b'"code":"overloaded"' in answer

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files_of(pid) - 10, hard))
    used, began = cpu_seconds(pid), time.monotonic()
    for _ in range(20):
        assert await asyncio.to_thread(greeted, desk.gateway.port, []) == b"", "the system lets nobody in"
    await desk.until({"files": "full"})
    await asyncio.sleep(1)
    assert cpu_seconds(pid) - used < 0.8 * (time.monotonic() - began), "it does not try again and again"
    await close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, hard))
    await desk.until({})
    assert (await asyncio.to_thread(greeted, desk.gateway.port, idle)).startswith(b"HTTP/1.1 200")
    await close()


def files_of(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def greeted(port: int, kept: list[socket.socket]) -> bytes:
    """What a new connection is told; nothing when it is just closed."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = connection.recv(1 << 16)
    except ConnectionError:
        answer = b""
    if answer.startswith(b"HTTP/1.1 200"):
        kept.append(connection)
    else:
        connection.close()
    return answer


def connections(port: int, number: int) -> list[socket.socket]:
    kept: list[socket.socket] = []
    assert all(greeted(port, kept).startswith(b"HTTP/1.1 200") for _ in range(number))
    return kept
