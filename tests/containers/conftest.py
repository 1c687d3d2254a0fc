"""One stack for all tests of this folder, on the engine that `docker info` finds.

Without an engine they skip, and say why; DESKMATE_CONTAINERS=required makes that a failure. Set it only for an engine
of the tests' own, since it also allows stand-ins under upstream names: made of Debian packages, they prove our
Dockerfiles, wiring, health checks, order and isolation, not the upstream images. Grafana's is a script.
"""

import json
from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.containers.engine import Engine
from tests.containers.stack import Stack


@pytest.fixture(scope="session")
def engine() -> Engine:
    found = Engine()
    found.bring_images()
    return found


@pytest.fixture(scope="session")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(engine, tmp_path_factory.mktemp("compose"))
    try:
        stack.prepare()
        stack.up("--build")  # an earlier run that was cut off has left its images
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def key(stack: Stack) -> str:
    made = stack.execute("gateway", "python", "-m", "gateway", "key", "create", "--user", "Ada", "--json")
    return str(json.loads(made.stdout)["key"])


@pytest.fixture
def client(stack: Stack, key: str) -> Iterator[OpenAI]:
    with stack.client(key) as client:
        yield client
