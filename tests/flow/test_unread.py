"""A client that asks and never reads: the answer is taken from the engine all the same, or cut; the seat comes back."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

LEFT = 'deskmate_requests_total{outcome="left",route="chat_completions"}'
COMPLETED = 'deskmate_requests_total{outcome="completed",route="chat_completions"}'
FITS = {"max_tokens": 1600}  # 1,024 are usual
LARGE = {"max_tokens": 8000, "logprobs": True, "top_logprobs": 20}  # two kilobytes and more for each token
BACK_SECONDS = 30.0


@pytest.fixture(scope="module")
def impatient(one_redis: RedisServer, shared_worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(one_redis, shared_worker.url, {"DESKMATE_UNREAD_SECONDS": "1"}) as gateway:
        yield gateway


async def test_an_answer_that_fits_is_taken_from_the_engine_although_nobody_reads_it(
    ready: GatewayProcess, scripted: FakeWorker, person: str
) -> None:
    scripted.script(answer=" longwordofmany" * 2000)
    before = await value(ready, COMPLETED)
    async with never_reading(ready, person, **FITS):
        await until(ready, lambda told: told[COMPLETED] > before and told["deskmate_requests_running"] == 0)
    assert scripted.generations[-1].tokens_sent == FITS["max_tokens"]


async def test_whoever_does_not_read_a_larger_one_is_cut_and_gives_the_seat_back(
    impatient: GatewayProcess, scripted: FakeWorker, person: str
) -> None:
    await impatient.until_ready()
    scripted.script(pace_ms=1)
    before = await value(impatient, LEFT)
    async with never_reading(impatient, person, **LARGE) as client:
        await until(impatient, lambda told: told[LEFT] > before and told["deskmate_requests_running"] == 0)
        await scripted.until(lambda worker: worker.generations[-1].state == "aborted", BACK_SECONDS)
        with pytest.raises(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                pass
    assert "Traceback" not in impatient.log.read_text()


@asynccontextmanager
async def never_reading(gateway: GatewayProcess, person: str, **fields: Any) -> AsyncIterator[socket.socket]:
    """The connection of a client that has asked for a streamed chat and reads nothing."""
    asked = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": True, "ignore_eos": True}
    body = json.dumps({**asked, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {await gateway.key(person)}"
    head += f"\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(client, head.encode() + body)
        yield client


async def until(gateway: GatewayProcess, true: Any) -> None:
    async with asyncio.timeout(BACK_SECONDS):
        while not true(await metrics(gateway)):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)


async def value(gateway: GatewayProcess, name: str) -> float:
    return (await metrics(gateway))[name]


async def metrics(gateway: GatewayProcess) -> dict[str, float]:
    async with httpx2.AsyncClient(base_url=gateway.url) as http:
        told = (await http.get("/metrics")).text
    return {name: float(number) for name, number in re.findall(r"^([^#\s]\S*) (\S+)$", told, re.MULTILINE)}
