"""`./deskmate` from the outside, on a real vLLM: up, ask, kill, stop, go on. Knows no insides of any part.

Needs the environment that `./deskmate test` makes; it is linked into the copies, so that nothing is installed twice.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

from deploy.home import Home
from deploy.install import Environment, runtime_lock
from deploy.processes import processes
from tests.docs.commands import commands, shell
from tests.flow.test_open_responses import CHECKS, Server

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 600.0
COPIED = ("deploy", "gateway", "worker")


class Site:
    """A copy of the checkout in an awkward place, with a data folder and the commands of a person."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "deskmate", folder)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for package in COPIED:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.home = Home(folder / "var")
        self.home.create()
        self.home.env.symlink_to(sys.prefix)
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deskmate(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
        return subprocess.run(
            [str(self.folder / "deskmate"), *words],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_SECONDS,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        done = self.deskmate("up", "--detach", "--port", str(self.port))
        assert done.returncode == 0, done.stdout + done.stderr + self.deskmate("logs").stdout
        return done

    def follows(self, name: str, changes: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
        """Types what the docs say."""
        return shell(commands(name, changes), self.folder, {"DESKMATE_PORT": str(self.port)}, READY_SECONDS)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.deskmate("status", "--json").stdout)
        return status

    def part(self, name: str) -> dict[str, Any]:
        return next(part for part in self.status()["parts"] if part["name"] == name)

    def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not wanted():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.2)

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def running(self) -> list[str]:
        """Every process that works in this copy: started by it, whoever its parent is now."""
        found = []
        for one in processes():
            try:
                folder = Path(f"/proc/{one.pid}/cwd").readlink()
            except OSError:
                continue
            if one.running and (folder == self.folder or self.folder in folder.parents):
                found.append(f"{one.pid} {one.name}")
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not Environment(Home(Path(sys.prefix).parent), print).holds(runtime_lock()):
        pytest.skip("needs the environment of `./deskmate test`")
    base = tmp_path_factory.mktemp("up") / "ein Ordner für alle"
    one = Site(base / ("x" * max(1, 150 - len(str(base)))))
    assert len(str(one.folder)) >= 150
    yield one
    one.deskmate("down")
    assert one.running() == []


@pytest.fixture(scope="module")
def first_start(site: Site) -> subprocess.CompletedProcess[str]:
    return site.up()


@pytest.fixture(scope="module")
def key(site: Site, first_start: object) -> str:
    done = site.deskmate("key", "create", "--user", "Ada", "--json")
    assert done.returncode == 0, done.stderr
    key: str = json.loads(done.stdout)["key"]
    return key


def test_up_returns_when_ready_and_has_told_the_link_the_key_command_and_the_demo(site: Site, first_start: Any):
    told = first_start.stdout
    assert f"http://127.0.0.1:{site.port}/#link=" in told
    assert "./deskmate key create --user" in told
    assert "Qwen2.5-1.5B-Instruct" in told
    status = site.status()
    assert status["ready"]
    assert status["model"] == "SmolLM2-135M-Instruct"
    assert [part["name"] for part in status["parts"]] == ["redis", "gateway", "worker", "engine"]
    assert all(part["pid"] and part["state"] == "ready" for part in status["parts"])


def test_everything_it_made_lies_in_one_private_folder(site: Site, first_start: object):
    made = {entry.name for entry in site.folder.iterdir()}
    assert made == {"deskmate", "pyproject.toml", "var", *COPIED}
    assert site.home.folder.stat().st_mode & 0o777 == 0o700


def test_a_second_up_is_refused_while_the_first_runs(site: Site, first_start: object):
    done = site.deskmate("up", "--detach", "--port", str(site.port))
    assert done.returncode == 4
    assert "already runs" in done.stderr


def test_the_openai_client_gets_a_sensible_answer(site: Site, key: str):
    model = site.client(key).models.list().data[0].id
    answer = site.client(key).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")


async def test_the_checks_of_open_responses_hold_on_a_real_engine(site: Site, key: str):
    """All at once, as its suite asks. The demo model calls no tools: its template knows none."""
    wishes = {"temperature": 0, "instructions": "Answer in one short sentence."}
    server = Server(site, key, None, "SmolLM2-135M-Instruct", wishes)
    wanted = [check for name, check in CHECKS.items() if name != "tool-calling"]
    assert len(wanted) == 16
    await asyncio.gather(*(check(server) for check in wanted))


@pytest.mark.parametrize("name", ["gateway", "redis", "engine"])
def test_a_part_that_is_killed_comes_back_and_answers(site: Site, key: str, name: str):
    before, began = site.part(name), worker_began(site)
    os.kill(before["pid"], signal.SIGKILL)
    site.until(lambda: site.part(name)["restarts"] > before["restarts"] and site.status()["ready"])
    assert site.part(name)["pid"] != before["pid"]
    assert (worker_began(site) > began) is (name == "engine")  # what the dashboard counts as its starts
    assert say(site, key, "Say hello.", conversation(site, key))


def test_a_conversation_goes_on_after_a_stop_and_after_the_whole_tree_was_killed(site: Site, key: str):
    talk = conversation(site, key)
    say(site, key, "My name is Ada.", talk)
    assert items(site, key, talk) == 2

    assert site.deskmate("down").returncode == 0
    assert site.running() == []
    assert site.deskmate("status").returncode == 3
    told = site.up().stdout
    assert items(site, key, talk) == 2
    say(site, key, "What is my name?", talk)
    assert items(site, key, talk) == 4
    assert "Ready" in told

    kill_everything(site)
    done = site.follows("model", {"/srv/models/Qwen2.5-1.5B-Instruct": site.home.demo_model})
    assert done.returncode == 0, done.stdout + done.stderr
    assert items(site, key, talk) == 4
    say(site, key, "And again?", talk)
    assert items(site, key, talk) == 6


def test_a_model_directory_that_cannot_work_ends_up_with_its_reason_and_leaves_nothing(site: Site, tmp_path: Path):
    site.deskmate("down")
    done = site.deskmate("up", "--detach", "--port", str(site.port), "--model", str(tmp_path))
    assert done.returncode == 78
    assert str(tmp_path) in done.stderr
    assert site.running() == []


def conversation(site: Site, key: str) -> str:
    return site.client(key).conversations.create().id


def say(site: Site, key: str, text: str, talk: str) -> str:
    client = site.client(key)
    model = client.models.list().data[0].id
    answer = client.responses.create(model=model, input=text, conversation=talk, max_output_tokens=32)
    assert answer.status in ("completed", "incomplete")
    return answer.output_text


def worker_began(site: Site) -> float:
    with urlopen(f"http://127.0.0.1:{site.port}/metrics/worker", timeout=30) as response:
        found = re.search(r"^process_start_time_seconds (\S+)$", response.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def items(site: Site, key: str, talk: str) -> int:
    return len(site.client(key).conversations.items.list(talk, limit=100).data)


def kill_everything(site: Site) -> None:
    """The supervisor, its guard and every part, with no chance to tidy up."""
    supervisor = site.status()["pid"]
    family = [supervisor, *(one.pid for one in processes() if one.parent == supervisor)]
    family += [part["pid"] for part in site.status()["parts"]]
    for pid in set(family):
        os.kill(pid, signal.SIGSTOP)
    for pid in set(family):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
