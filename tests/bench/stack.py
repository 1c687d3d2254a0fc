"""The processes of a benchmark: Redis, an upstream, the gateway, the load generator; pinned, measured, ended."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import msgspec

from tests.bench.load import Job, Result
from tests.servers import RedisServer, find_binary

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
ENGINE_SECONDS = 300.0  # a model is loaded
SEATS = 1024


def cores() -> tuple[int, int] | None:
    """One for the process under test, one for everything else; None when there is one core only."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else None


def start(arguments: list[str], core: int | None, **keywords: Any) -> subprocess.Popen[bytes]:
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    return subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, preexec_fn=pin, **keywords)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def post(address: str, path: str, body: object) -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def until_ready(address: str, path: str, process: subprocess.Popen[bytes], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{address}{path}", timeout=5).close()
            return
        except (HTTPError, URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError(f"{address}{path} did not become ready")


@dataclass
class Measured:
    """A process and what it used."""

    process: subprocess.Popen[bytes]

    def cpu_seconds(self) -> float:
        """On a core so far, by the scheduler's own count (nanoseconds), all threads and living children."""
        return sum(map(_cpu_seconds, self._pids()))

    def rss_bytes(self) -> int:
        return sum(_rss_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        found, known = [self.process.pid], 0
        while known < len(found):
            children = Path(f"/proc/{found[known]}/task/{found[known]}/children").read_text().split()
            found += map(int, children)
            known += 1
        return found


def _cpu_seconds(pid: int) -> float:
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Stack:
    """`upstream` and `gateway` are addresses (host:port)."""

    upstream: str
    gateway: str
    keys_of: list[list[str]]  # of each person
    model: str
    worker: Measured | None
    under_test: Measured
    redis: Measured
    redis_server: RedisServer
    loader: subprocess.Popen[bytes]
    new_gateway: Callable[[], Measured]
    command: Callable[..., str]  # `python -m gateway …` beside it: what that prints

    @property
    def keys(self) -> list[str]:
        """One of each person."""
        return [keys[0] for keys in self.keys_of]

    @property
    def key(self) -> str:
        return self.keys[0]

    def load(self, job: Job) -> Result:
        assert self.loader.stdin
        assert self.loader.stdout
        self.loader.stdin.write(msgspec.json.encode(job) + b"\n")
        self.loader.stdin.flush()
        result = msgspec.json.decode(self.loader.stdout.readline(), type=Result)
        if result.errors:
            broken = f"{result.errors} of {result.answers} answers of {job.address}{job.path} broke off"
            raise RuntimeError(f"{broken}, e.g. {result.example!r}")
        return result

    def restart(self) -> Measured:
        """Kill the gateway, and start another at its place."""
        self.under_test.process.kill()
        self.under_test.process.wait()
        self.under_test = self.new_gateway()
        return self.under_test

    def script(self, **changes: object) -> None:
        post(self.upstream, "/_fake/script", changes)


def total(metrics: str, *names: str) -> float:
    """The sum of what vLLM's metrics of these names say."""
    begins = tuple(f"vllm:{name}{{" for name in names)
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(begins))


@contextmanager
def real_worker(model: Path, seats: int | None = None) -> Iterator[str]:
    """The address of a vLLM that serves this model directory, by our plan; about a minute later it is ready."""
    port = free_port()
    arguments = ["worker", "--model", str(model), "--port", str(port), "--served-name", "bench"]
    arguments += ["--seats", str(seats)] if seats else []
    with tempfile.TemporaryFile() as log:
        process = start(arguments, None, stdout=log, stderr=log, start_new_session=True)
        try:
            until_ready(f"127.0.0.1:{port}", "/health", process, ENGINE_SECONDS)
            yield f"127.0.0.1:{port}"
        except RuntimeError:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            end(process)


@contextmanager
def stack(
    upstream: str | None = None,
    *,
    seats: int = SEATS,
    people: Sequence[int] = (1,),
    more: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Everything, started; `upstream`: the address of a worker that runs already, else a scripted one is started.

    `people`: how many keys each has; they are called bench0, bench1 and so on. `more`: more settings of the gateway."""
    # A real worker uses every core, and so does what is measured beside it.
    ours, others = (upstream is None and cores()) or (None, None)
    folder = Path(tempfile.mkdtemp(prefix="dm"))
    binary = find_binary("redis") or find_binary("valkey")
    if binary is None:
        raise RuntimeError("no Redis on this machine; see ./deskmate doctor")
    redis = RedisServer(binary)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        redis.start()
        redis.admin("CONFIG", "SET", "appendfsync", "always")
        assert redis.process
        if others is not None:
            os.sched_setaffinity(redis.process.pid, {others})
        worker = None
        if upstream is None:
            upstream = f"127.0.0.1:{free_port()}"
            port = upstream.rpartition(":")[2]
            arguments = ["tests.fake_worker", "--port", port, "--seats", str(seats), "--context", "32768"]
            worker = Measured(start(arguments, others, stdout=subprocess.DEVNULL))
            processes.append(worker.process)
            until_ready(upstream, "/health", worker.process)
        gateway, environment = f"127.0.0.1:{free_port()}", _settings(folder, redis, upstream, seats) | dict(more or {})
        environment["DESKMATE_PORT"] = gateway.rpartition(":")[2]

        def new_gateway() -> Measured:
            process = start(["gateway", "serve"], ours, env=environment)
            processes.append(process)
            until_ready(gateway, "/readyz", process)
            return Measured(process)

        def command(*arguments: str) -> str:
            whole = [sys.executable, "-m", "gateway", *arguments]
            return subprocess.run(whole, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

        def keys_of(person: int, count: int) -> list[str]:
            create = ("key", "create", "--user", f"bench{person}", "--json")
            return [json.loads(command(*create))["key"] for _ in range(count)]

        under_test = new_gateway()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            keys = list(threads.map(keys_of, range(len(people)), people))
        loader = start(["tests.bench.load"], others, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(loader)
        with urllib.request.urlopen(f"http://{upstream}/v1/models", timeout=10) as models:
            model = json.loads(models.read())["data"][0]["id"]
        yield Stack(
            upstream,
            gateway,
            keys,
            model,
            worker,
            under_test,
            Measured(redis.process),
            redis,
            loader,
            new_gateway,
            command,
        )
    finally:
        for process in reversed(processes):
            end(process)
        redis.close()
        shutil.rmtree(folder)


def _settings(folder: Path, redis: RedisServer, upstream: str, seats: int) -> dict[str, str]:
    (folder / "redis-password").write_text(redis.password)
    (folder / "secret").write_text(secrets.token_urlsafe(48))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
    return inherited | {
        "DESKMATE_REDIS_URL": redis.url,
        "DESKMATE_REDIS_PASSWORD_FILE": str(folder / "redis-password"),
        "DESKMATE_SECRET_FILE": str(folder / "secret"),
        "DESKMATE_WORKER_URLS": f"http://{upstream}",
        "DESKMATE_SEATS": str(seats),
        "DESKMATE_QUEUE_PER_PERSON": str(SEATS),
        "DESKMATE_CONCURRENCY": str(2 * SEATS),
    }
