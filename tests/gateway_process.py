"""The gateway as people run it: a process of its own, on a real Redis, before whatever worker a test brings."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openai

from gateway.auth.keys import Keys
from gateway.auth.people import People
from gateway.auth.principal import Scope
from gateway.auth.secret import Secrets
from gateway.redis_client import RedisClient
from tests.servers import RedisServer

ROOT = Path(__file__).parents[1]
SECRET = b"a test's secret, long enough to be one"
SYSTEM = "You are a helpful assistant."
START_SECONDS = 60.0  # two when nothing else runs


@dataclass
class GatewayProcess:
    """`with GatewayProcess(redis, worker.url) as gateway: …`; `kill` and `start` as often as wanted, the port stays."""

    redis: RedisServer
    worker_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    program: Sequence[str] = ("-m", "gateway")  # whatever does the same

    def __enter__(self) -> "GatewayProcess":
        self.folder = tempfile.TemporaryDirectory(prefix="dmgw")
        folder = Path(self.folder.name)
        (folder / "secret").write_bytes(SECRET)
        (folder / "password").write_text(self.redis.password)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        self.folder.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("wb") as log:
            command = [sys.executable, *self.program, "serve"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._variables(), stdout=log, stderr=log)
        self._wait_until_listening()

    def command(self, *arguments: str) -> str:
        """What another command of the gateway prints, run with the same settings."""
        command = [sys.executable, "-m", "gateway", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self._variables(), check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def _variables(self) -> dict[str, str]:
        folder = Path(self.folder.name)
        return {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")} | {
            "DESKMATE_REDIS_URL": self.redis.url,
            "DESKMATE_REDIS_PASSWORD_FILE": str(folder / "password"),
            "DESKMATE_SECRET_FILE": str(folder / "secret"),
            "DESKMATE_WORKER_URLS": self.worker_url,
            "DESKMATE_PORT": str(self.port),
            "DESKMATE_DRAIN_SECONDS": "5",
            **self.environment,
        }

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            if found := re.search(r"listening on https?://[^:]+:(\d+)", self.log.read_text()):
                self.port = int(found[1])
                return
            time.sleep(0.02)
        raise AssertionError(f"the gateway did not start: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM, within_seconds: float = 20.0) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_seconds)

    def readyz(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:  # else its socket is left to the garbage collector
                return error.code

    async def until_ready(self, within_seconds: float = 20.0) -> None:
        async with asyncio.timeout(within_seconds):
            while await asyncio.to_thread(self.readyz) != 200:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)

    async def key(self, person: str, scopes: frozenset[Scope] = frozenset({Scope.CHAT})) -> str:
        return (await self.person_and_key(person, scopes))[1]

    async def person_and_key(self, person: str, scopes: frozenset[Scope] = frozenset({Scope.CHAT})) -> tuple[str, str]:
        """The person's id, and a key of theirs."""
        redis = RedisClient(self.redis.url, self.redis.password)
        try:
            made = await People(redis).ensure(person)
            return made.id, (await Keys(redis, Secrets(SECRET)).create(made.id, scopes=scopes))[1]
        finally:
            await redis.aclose()

    async def client(self, person: str, **options: object) -> openai.AsyncOpenAI:
        """The official client, as `person`, without retries of its own."""
        options = {"max_retries": 0, "timeout": 30.0} | options
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=await self.key(person), **options)  # type: ignore[arg-type]
