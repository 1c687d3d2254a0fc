"""A whole gateway before a scripted worker; tests of one file share it and come as different people."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import cast

import openai
import pytest

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer, some_redis

_people = itertools.count(1)


@pytest.fixture(scope="module")
def one_redis() -> Iterator[RedisServer]:
    """One real server, whichever is there: what both must do is the contract tests' work."""
    with some_redis() as server:
        yield server


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[FakeWorker]:
    with FakeWorker(seats=4) as worker:
        yield worker


@pytest.fixture(scope="module")
def shared_gateway(one_redis: RedisServer, shared_worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(one_redis, shared_worker.url) as gateway:
        yield gateway


@pytest.fixture
def scripted(shared_worker: FakeWorker) -> FakeWorker:
    """The shared worker with an empty script and memory."""
    shared_worker.script(pace_ms=0, prefill_ms=0, loading=False, fail=None, times=None, answer=None, tools=None)
    shared_worker.script(thoughts=None, split_bytes=0, batch=1, refuses=None, checks=True)
    shared_worker.engine.records.clear()
    return shared_worker


@pytest.fixture
async def ready(shared_gateway: GatewayProcess, scripted: FakeWorker) -> GatewayProcess:
    await shared_gateway.until_ready()
    await empty_line(shared_gateway.redis)
    return shared_gateway


async def empty_line(redis: RedisServer) -> None:
    """Nobody has a seat, also none that an earlier test's gateway took along when it was killed; and none is kept."""
    async with asyncio.timeout(20):
        while float(cast(bytes, redis.admin("HGET", "dm:line:clock", "flying")) or 0):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    redis.admin("DEL", "dm:line:light")


@pytest.fixture
def person() -> str:
    return f"person{next(_people)}"


@pytest.fixture
async def client(ready: GatewayProcess, person: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with await ready.client(person) as client:
        yield client
