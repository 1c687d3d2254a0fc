"""Fixtures that more than one test file needs."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from gateway.redis_client import RedisClient
from tests.servers import BINARIES, RedisServer, find_binary, missing

# An example that takes long on a busy machine is no failure: times are measured by benchmarks.
hypothesis.settings.register_profile("deskmate", deadline=None)
hypothesis.settings.load_profile("deskmate")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--fault-rounds", type=int, default=0, metavar="N", help="only this: N faults, one after the other")
    group.addoption("--fault-examples", type=int, default=0, metavar="N", help="only this: N long runs of any steps")
    group.addoption("--real-kills", type=int, default=0, metavar="N", help="only this: N kills before a real vLLM")
    group.addoption("--any-requests", type=int, default=0, metavar="N", help="only this: N requests of any form")
    group.addoption("--cancels", type=int, default=0, metavar="N", help="only this: N answers left in each phase")
    group.addoption("--line-examples", type=int, default=0, metavar="N", help="only this: N long runs of the line")
    group.addoption(
        "--open-webui", nargs="?", const="var/open-webui", metavar="DIR", help="only this: Open WebUI, installed there"
    )
    group.addoption("--fault-seed", type=int, default=0, metavar="N", help="another sequence of faults")


@pytest.fixture(scope="session", params=BINARIES)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    return find_binary(request.param) or missing(f"{request.param} server")


@pytest.fixture(scope="session")
def shared_redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """An empty server, shared by the session: do not kill it."""
    shared_redis_server.reset()
    return shared_redis_server


@pytest.fixture
def mortal_redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A server of the test's own: may be killed and started again."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture
async def redis_client(redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    client = RedisClient(redis_server.url, redis_server.password)
    yield client
    await client.aclose()
