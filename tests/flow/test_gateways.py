"""Several gateways at one address, as the supervisor runs them: restarted, killed, asked through whichever process."""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deploy import control
from deploy.home import Home, read_json
from gateway.auth.keys import Keys
from gateway.auth.people import People
from gateway.auth.secret import Secrets
from gateway.redis_client import RedisClient
from tests.fake_worker import FakeWorker

ROOT = Path(__file__).resolve().parents[2]
PATIENT_SECONDS = 30.0
CLIENTS = 40
PAUSE_SECONDS = 0.1
LONG = " word" * 50
FAULTS = (openai.OpenAIError, httpx.HTTPError, AssertionError)
COUNTED = 'deskmate_requests_total{outcome="completed",route="chat_completions"}'
SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
from deploy.home import Home
from deploy.local import Stack
from deploy.wishes import Wishes
home, root, port, worker, gateways, certificate = sys.argv[1:7]
pem = Path(certificate) if certificate else None
wishes = Wishes(port=int(port), worker_urls=(worker,), gateways=int(gateways), tls_cert=pem, tls_key=pem)
asyncio.run(Stack(Home(Path(home)), Path(root), wishes, os.environ).run())
"""


class Site:
    """`./deskmate up --gateways N` in front of a scripted worker, with a Redis of its own."""

    def __init__(self, folder: Path, worker: FakeWorker, gateways: int, certificate: Path | None = None) -> None:
        self.home = Home(folder)
        self.home.create()
        self.home.env.symlink_to(sys.prefix)
        self.scheme = "https" if certificate else "http"
        self._trusts = ssl.create_default_context(cafile=certificate) if certificate else False
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._arguments = [str(folder), str(ROOT), str(self.port), worker.url, str(gateways), str(certificate or "")]

    @contextmanager
    def running(self, **settings: str) -> Iterator["Site"]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")} | settings
        command = [sys.executable, "-c", SUPERVISOR, *self._arguments]
        supervisor = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            self.until(lambda: (status := self.status()) is not None and status["ready"])
            yield self
        finally:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.communicate(timeout=PATIENT_SECONDS)

    def status(self) -> Any:
        return read_json(self.home.status_file)

    def until(self, wanted: Any) -> None:
        deadline = time.monotonic() + PATIENT_SECONDS
        while not wanted():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.02)

    def pids(self) -> dict[str, int]:
        return {part["name"]: part["pid"] for part in self.status()["parts"] if part["name"].startswith("gateway")}

    async def restart(self) -> float:
        """How long it took."""
        began = time.monotonic()
        await asyncio.to_thread(control.restart, self.home, "gateway")
        return time.monotonic() - began

    async def key(self, person: str) -> str:
        return (await self.keys(person))[0]

    async def keys(self, *people: str) -> list[str]:
        settings = read_json(self.home.run / "stack.json")["settings"]
        redis = RedisClient(settings["DESKMATE_REDIS_URL"], Path(settings["DESKMATE_REDIS_PASSWORD_FILE"]).read_text())
        try:
            keys = Keys(redis, Secrets.from_file(Path(settings["DESKMATE_SECRET_FILE"])))
            made = [await People(redis).ensure(person) for person in people]
            return [(await keys.create(person.id))[1] for person in made]
        finally:
            await redis.aclose()

    def client(self, key: str, retries: int = 0) -> openai.AsyncOpenAI:
        """The official client on connections of its own; it retries twice by itself unless told otherwise."""
        return openai.AsyncOpenAI(
            base_url=f"{self.scheme}://localhost:{self.port}/v1",
            api_key=key,
            max_retries=retries,
            timeout=PATIENT_SECONDS,
            http_client=httpx.AsyncClient(verify=self._trusts, timeout=PATIENT_SECONDS),
        )

    @asynccontextmanager
    async def through(self, name: str, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
        """A client whose one connection is held by the process of that name: the others were stopped while it came."""
        others = [pid for other, pid in self.pids().items() if other != name]
        async with self.client(key) as client:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            try:
                await client.models.list()
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)
            yield client

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENT_SECONDS) as answer:
            return str(answer.read(), "utf-8")


@dataclass
class Seen:
    """What all clients of one load saw."""

    seconds: list[float] = field(default_factory=list)  # of the requests that were answered
    streams: int = 0
    cut: int = 0  # streams that broke off and were followed again
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        longest = max(self.seconds, default=0.0)
        return (
            f"{len(self.seconds)} requests, longest {longest:.2f} s; {self.streams} streams, {self.cut} of them cut and"
            f" followed; {len(self.errors)} errors"
        )


async def ask_on_and_on(client: openai.AsyncOpenAI, seen: Seen, over: asyncio.Event) -> None:
    """Short questions, one after the other."""
    while not over.is_set():
        await asyncio.sleep(PAUSE_SECONDS)
        began = time.monotonic()
        try:
            response = await client.responses.create(input="short", max_output_tokens=16)
            assert response.output_text
            seen.seconds.append(time.monotonic() - began)
        except FAULTS as error:
            seen.errors.append(f"{error!r}, {error.__cause__!r} after {time.monotonic() - began:.2f} s")


async def watch_on_and_on(client: openai.AsyncOpenAI, seen: Seen, over: asyncio.Event) -> None:
    """Long answers, watched to the end; where a stream breaks off, followed from there as the page does."""
    while not over.is_set():
        try:
            await watched(client, seen)
        except FAULTS as error:
            seen.errors.append(f"stream: {error!r}, {error.__cause__!r}")


async def watched(client: openai.AsyncOpenAI, seen: Seen, expected: str = LONG) -> None:
    seen.streams += 1
    stream = await client.responses.create(input="long", stream=True, background=seen.streams % 2 == 0)
    id, at, text = "", -1, ""
    while True:
        try:
            async for event in stream:
                assert event.sequence_number == at + 1
                at = event.sequence_number
                if event.type == "response.created":
                    id = event.response.id
                elif event.type == "response.output_text.delta":
                    text += event.delta
                elif event.type in ("response.completed", "response.failed", "response.incomplete"):
                    assert event.type == "response.completed", event.response.error
                    assert text == expected, f"{len(text)} characters, {text[-40:]!r}"
                    assert (await client.responses.retrieve(id)).output_text == expected
                    return
        except (httpx.TransportError, openai.APIConnectionError):
            pass
        seen.cut += 1
        stream = await client.responses.retrieve(id, stream=True, starting_after=at)


@asynccontextmanager
async def load(site: Site, askers: int, watchers: int) -> AsyncIterator[Seen]:
    seen, over = Seen(), asyncio.Event()
    keys = await site.keys(*(f"person{n}" for n in range(askers + watchers)))
    clients = [site.client(key, retries=2) for key in keys]  # as people have it: a full drain is a 503 with a wait
    tasks = [asyncio.create_task(ask_on_and_on(client, seen, over)) for client in clients[:askers]]
    tasks += [asyncio.create_task(watch_on_and_on(client, seen, over)) for client in clients[askers:]]
    try:
        yield seen
    finally:
        over.set()
        await asyncio.gather(*tasks)
        for client in clients:
            await client.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[FakeWorker]:
    with FakeWorker(seats=64) as worker:
        yield worker


@pytest.fixture(scope="module")
def one_site(worker: FakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("two") / "var", worker, 2).running(DESKMATE_DRAIN_SECONDS="3") as site:
        warm_up(site)
        yield site


def warm_up(site: Site) -> None:
    """The client's first stream costs it seconds of a busy processor: it builds the types of all events."""
    key = asyncio.run(site.key("first"))
    with openai.OpenAI(base_url=f"http://localhost:{site.port}/v1", api_key=key) as client:
        assert [event.type for event in client.responses.create(input="short", stream=True)][-1] == "response.completed"


@pytest.fixture
def site(one_site: Site, worker: FakeWorker) -> Site:
    worker.script(pace_ms=0, answer=None)
    worker.engine.records.clear()
    return one_site


async def test_a_rolling_restart_under_load_is_noticed_by_nobody(site: Site, worker: FakeWorker):
    worker.script(pace_ms=40, answer=LONG)
    before = site.pids()
    async with load(site, askers=CLIENTS // 2, watchers=CLIENTS // 2) as seen:
        await worker.until(lambda w: len(w.generations) >= CLIENTS)
        seconds = await site.restart()
    print(f"rolling restart of two in {seconds:.1f} s: {seen}")
    assert seen.errors == []
    assert len(seen.seconds) > CLIENTS and seen.streams >= CLIENTS // 2
    assert not set(before.values()) & set(site.pids().values())


async def test_an_answer_that_takes_longer_than_a_stop_waits_goes_on_in_another_process(site: Site, worker: FakeWorker):
    worker.script(pace_ms=40, answer=LONG * 3)
    stopped, seen = site.pids()["gateway-1"], Seen()
    key, other = await site.keys("dora", "eve")
    async with site.through("gateway-1", key) as client, site.through("gateway-1", other) as another:
        watching = [asyncio.create_task(watched(one, seen, LONG * 3)) for one in (client, another)]
        await worker.until(lambda w: len(w.generations) == 2)
        os.kill(stopped, signal.SIGTERM)
        await asyncio.gather(*watching)
    print(f"stopped under answers of six seconds: {seen}")
    assert (seen.streams, seen.cut, seen.errors) == (2, 2, [])
    site.until(lambda: site.pids()["gateway-1"] not in (stopped, None) and site.status()["ready"])


async def test_when_one_of_two_is_killed_new_requests_go_on_at_once(site: Site):
    key = await site.key("ann")
    victim = site.pids()["gateway-1"]
    os.kill(victim, signal.SIGKILL)
    seen = Seen()
    for _ in range(20):
        async with site.client(key) as client:
            began = time.monotonic()
            await client.responses.create(input="short", max_output_tokens=16)
            seen.seconds.append(time.monotonic() - began)
    print(f"one of two killed: {seen}")
    site.until(lambda: site.pids()["gateway-1"] not in (victim, None) and site.status()["ready"])


async def test_whatever_one_process_wrote_the_other_lists_gets_streams_and_cancels(site: Site, worker: FakeWorker):
    worker.script(pace_ms=20, answer=LONG * 10)
    key = await site.key("ben")
    async with site.through("gateway-1", key) as first, site.through("gateway-2", key) as second:
        conversation = await first.conversations.create()
        asked = await first.responses.create(input="long", conversation=conversation.id, background=True)
        assert (await second.responses.retrieve(asked.id)).status == "in_progress"
        assert (await second.conversations.items.list(conversation.id)).data
        text = ""
        async for event in await second.responses.retrieve(asked.id, stream=True):
            text += event.delta if event.type == "response.output_text.delta" else ""
            if len(text) > 40:
                break
        assert (LONG * 10).startswith(text)
        async with site.through("gateway-2", key) as canceller:
            assert (await canceller.responses.cancel(asked.id)).status == "cancelled"
        assert (await first.responses.retrieve(asked.id)).status == "cancelled"
        await worker.until(lambda w: w.generations[-1].state == "aborted")


async def test_a_scrape_of_any_tells_of_all_also_of_what_the_dead_have_counted(site: Site, worker: FakeWorker):
    key = await site.key("cleo")
    before = value(site.metrics(), COUNTED)
    for name in site.pids():
        async with site.through(name, key) as client:
            model = (await client.models.list()).data[0].id
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "short"}])
    for _ in range(3):
        told = site.metrics()
        assert value(told, COUNTED) == before + 2
    assert value(told, "deskmate_seats") == 64 and value(told, 'deskmate_up{part="redis"}') == 1
    pids = re.findall(r'^process_resident_memory_bytes{pid="(\d+)"}', told, re.MULTILINE)
    assert {int(pid) for pid in pids} == set(site.pids().values())
    await site.restart()
    told = site.metrics()
    assert value(told, COUNTED) == before + 2
    assert value(told, "deskmate_requests_waiting") == 0


async def test_while_the_only_gateway_is_restarted_or_dead_questions_wait_and_are_answered(
    worker: FakeWorker, tmp_path: Path, certificate: Path
):
    worker.script(pace_ms=0, answer=None)
    worker.engine.records.clear()
    with Site(tmp_path / "var", worker, 1, certificate).running() as site:
        async with load(site, askers=CLIENTS // 4, watchers=0) as seen:
            await worker.until(lambda w: len(w.generations) >= CLIENTS // 2)
            seconds = await site.restart()
        print(f"the only gateway restarted in {seconds:.1f} s, TLS: {seen}")
        assert seen.errors == []
        key, victim = await site.key("ann"), site.pids()["gateway"]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        async with site.client(key) as client:
            assert (await client.responses.create(input="short", max_output_tokens=16)).output_text
        print(f"the only gateway killed: the next question was answered after {time.monotonic() - began:.1f} s")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and the certificate it signed itself, in one file."""
    file = tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names, "-keyout", file, "-out", tmp_path / "c"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "c").read_text())
    return file


def value(told: str, series: str) -> float:
    """Of one series in a scrape; 0 where it has none yet."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", told, re.MULTILINE)
    return float(found[1]) if found else 0.0
