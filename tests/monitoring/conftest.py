"""One Redis, one gateway and one scripted worker that gives all metrics of a real one, for all tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest

from tests.fake_worker import FakeWorker, default_plan
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer, some_redis
from worker.endpoint import WorkerMetrics


class Metered(FakeWorker):
    """The scripted worker with the rest of what a real one gives: our plug-in's metrics, the process, times."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = CollectorRegistry()
        own.register(WorkerMetrics(default_plan("fake", 8192, 4)))
        ProcessCollector(registry=own)
        self.preemptions = Counter("vllm:num_preemptions", "…", registry=own)
        names = (
            "time_to_first_token",
            "inter_token_latency",
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
        )
        self.times = [Histogram(f"vllm:{name}_seconds", "…", registry=own) for name in names]
        scripted = self.engine.metrics
        self.engine.metrics = lambda: scripted() + self.further(own)  # type: ignore[method-assign]

    def further(self, registry: CollectorRegistry) -> bytes:
        for histogram in self.times:
            histogram.observe(0.02)
        return generate_latest(registry)


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with some_redis() as server:
        server.admin("CONFIG", "SET", "maxmemory", 64 << 20)
        yield server


@pytest.fixture(scope="session")
def token() -> str:
    """What a scraper on another machine shows."""
    return "a-token-of-forty-three-characters-like-base64"


@pytest.fixture(scope="session")
def worker() -> Iterator[FakeWorker]:
    with Metered(seats=4) as worker:
        yield worker


@pytest.fixture(scope="session")
def gateway(
    redis: RedisServer, worker: FakeWorker, token: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(token + "\n")
    environment = {"DESKMATE_METRICS_TOKEN_FILE": str(file)}
    with GatewayProcess(redis, worker.url, environment) as gateway:
        yield gateway
