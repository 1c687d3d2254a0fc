"""A whole installation that may be broken anywhere: two gateways, one Redis, scripted workers, and wires between them.

Clients speak to the gateways, and the gateways to Redis and the workers, through proxies. Knows how parts start; which
part breaks when is `nemesis.py`, what people do is `people.py`.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp

from tests.fault.history import History
from tests.fault.nemesis import Nemesis
from tests.gateway_process import ROOT, START_SECONDS, GatewayProcess
from tests.proxy import Proxy, Target
from tests.servers import RedisServer, some_redis

SEATS = 64


@dataclass
class WorkerProcess:
    """`python -m tests.fake_worker`: `stop` and `start` as often as wanted, the address and the script stay."""

    folder: Path
    script: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def target(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.fake_worker", "--port", str(self.port), "--seats", str(SEATS)]
        command += ["--journal", str(self.journal), "--script", json.dumps(self.script)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout
        told = self.process.stdout.readline().decode()
        self.process.stdout.close()
        found = re.search(r":(\d+)$", told.strip())
        assert found, f"the worker did not start: {told}"
        self.port = int(found[1])

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(10)

    async def play(self, **changes: Any) -> None:
        """Change the script, also for the starts to come."""
        self.script |= changes
        async with aiohttp.ClientSession() as http, http.post(f"{self.url}/_fake/script", json=changes) as answer:
            answer.raise_for_status()

    async def tell(self) -> dict[str, Any]:
        """peak_running, running, requests (of this process, as received)."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/_fake/requests") as answer:
            told: dict[str, Any] = await answer.json()
            return told

    async def until_answering(self, count: int, tokens: int = 4, within_seconds: float = 20.0) -> None:
        """Until so many answers are being written and each has so many tokens."""

        async def answering() -> int:
            requests = (await self.tell())["requests"]
            return len([1 for one in requests if one["state"] == "running" and one["tokens_sent"] >= tokens])

        async with asyncio.timeout(within_seconds):
            while await answering() < count:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.02)


class Worker(Protocol):
    """What the desk asks of a worker, scripted (`WorkerProcess`) or real (`real.py`)."""

    folder: Path
    process: subprocess.Popen[bytes] | None

    @property
    def target(self) -> Target: ...

    @property
    def journal(self) -> Path: ...

    def start(self) -> None: ...

    def stop(self, number: int = signal.SIGTERM) -> None: ...

    async def play(self, **changes: Any) -> None: ...

    async def tell(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Generation:
    """One answer of a worker, from its journal; `ended` None: its process was killed."""

    turn: str
    began: float
    ended: float | None
    state: str
    tokens: int


class Desk:
    def __init__(self, redis: RedisServer, workers: "Sequence[Worker]") -> None:
        self.redis = redis
        self.history = History()
        self.nemesis = Nemesis(self)
        self.workers = workers
        self.gateways: list[GatewayProcess] = []
        self.doors: list[Proxy] = []  # before each gateway
        self.redis_wire = Proxy(redis.socket)
        self.worker_wires: list[Proxy] = []

    @property
    def wires(self) -> list[Proxy]:
        return [*self.doors, self.redis_wire, *self.worker_wires]

    async def until_ready(self) -> None:
        for gateway in self.gateways:
            await gateway.until_ready(START_SECONDS)

    async def heal(self) -> None:
        """Whatever is broken works again, whatever is stopped runs."""
        for wire in self.wires:
            wire.heal()
        if self.redis.process is None:
            await asyncio.to_thread(self.redis.start)
        for process in (*self.workers, *self.gateways):
            if process.process is None or process.process.poll() is not None:
                await asyncio.to_thread(process.start)
        await self.until_ready()

    async def play(self, **changes: Any) -> None:
        for worker in self.workers:
            await worker.play(**changes)

    async def fresh(self) -> None:
        """Between two tests: nothing is broken, the script is empty, nobody is remembered by the history."""
        await self.heal()
        await self.play(pace_ms=5, prefill_ms=0, loading=False, fail=None, times=None, answer=None, batch=1)
        self.history.clear()
        for worker in self.workers:
            worker.journal.write_bytes(b"")

    def generations(self) -> list[Generation]:
        """What all workers have done since the test began, also those that were killed."""
        return [one for worker in self.workers for one in _read(worker.journal)]

    def count_faults(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.history.faults)


@asynccontextmanager
async def desk(
    *,
    gateways: int = 2,
    workers: int | Sequence["Worker"] = 1,
    environment: Mapping[str, str] | None = None,
    **script: Any,
) -> AsyncIterator[Desk]:
    """Everything, started. `workers`: how many scripted ones, or others that are like them."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmfault")))
        redis = stack.enter_context(some_redis("redis", "valkey"))
        if isinstance(workers, int):
            workers = [WorkerProcess(folder / str(number), {"pace_ms": 5} | script) for number in range(workers)]
        made = Desk(redis, workers)
        await stack.enter_async_context(made.redis_wire)
        for worker in made.workers:
            worker.folder.mkdir()
            stack.callback(_end, worker)
        await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in made.workers))
        for worker in made.workers:
            made.worker_wires.append(await stack.enter_async_context(Proxy(worker.target)))
        name = urlsplit(redis.url).username
        user = f"{name}@" if name else ""
        variables = {
            "DESKMATE_REDIS_URL": f"redis://{user}127.0.0.1:{made.redis_wire.port}/0",
            **(environment or {}),
        }
        urls = ",".join(wire.url for wire in made.worker_wires)
        for _ in range(gateways):
            gateway = GatewayProcess(redis, urls, variables)
            await asyncio.to_thread(stack.enter_context, gateway)
            made.gateways.append(gateway)
            made.doors.append(await stack.enter_async_context(Proxy(("127.0.0.1", gateway.port))))
        await made.until_ready()
        yield made


def _end(worker: "Worker") -> None:
    if worker.process is not None and worker.process.poll() is None:
        worker.stop(signal.SIGKILL)


def _read(journal: Path) -> list[Generation]:
    if not journal.exists():
        return []
    open_ones: dict[tuple[int, int], dict[str, Any]] = {}
    done: list[Generation] = []
    for line in journal.read_bytes().splitlines():
        note = json.loads(line)
        name = (note["pid"], note["number"])
        if note["state"] == "running":
            open_ones[name] = note
        elif (began := open_ones.pop(name, None)) is not None:
            done.append(Generation(note["id"], began["at"], note["at"], note["state"], note["tokens"]))
    return [*done, *(Generation(note["id"], note["at"], None, "killed", 0) for note in open_ones.values())]
