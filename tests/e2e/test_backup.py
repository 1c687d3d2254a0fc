"""`./deskmate backup` and `restore` from the outside: running, stopped, elsewhere, refused. The engine is scripted.

Needs the environment that `./deskmate test` makes; it is linked into the data folders: nothing is installed twice.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import redis

from deploy.home import Home
from deploy.install import Environment, runtime_lock
from tests.fake_worker import FakeWorker

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120


class Site:
    """A data folder and the commands of a person."""

    def __init__(self, folder: Path, worker_url: str) -> None:
        self.home = Home(folder)
        self.home.create()
        self.home.env.symlink_to(sys.prefix)
        self.worker_url = worker_url
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]

    def deskmate(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
        done = subprocess.run(
            [str(ROOT / "deskmate"), *words],
            cwd=self.home.folder.parent,
            env={**given, "DESKMATE_HOME": str(self.home.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def up(self, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.deskmate("up", "--detach", "--port", str(self.port), "--worker-url", self.worker_url, code=code)

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=60)

    def redis(self) -> redis.Redis:
        """The running stack's own."""
        sockets = json.loads((self.home.run / "stack.json").read_text())["sockets"]
        password = (self.home.secrets / "redis-password").read_text()
        return redis.Redis(unix_socket_path=f"{sockets}/redis.sock", password=password)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[type[Site]]:
    """Makes data folders; whatever runs on them is stopped at the end."""
    if not Environment(Home(Path(sys.prefix).parent), print).holds(runtime_lock()):
        pytest.skip("needs the environment of `./deskmate test`")
    made: list[Site] = []

    def new(name: str) -> Site:
        made.append(Site(tmp_path / name, worker.url))
        return made[-1]

    with FakeWorker() as worker:
        yield new  # type: ignore[misc]
        for one in made:
            if (one.home.run / "status.json").exists():
                subprocess.run(
                    [str(ROOT / "deskmate"), "down"], env={**os.environ, "DESKMATE_HOME": str(one.home.folder)}
                )


def texts(client: openai.OpenAI, conversation: str) -> list[str]:
    return [item.content[0].text for item in client.conversations.items.list(conversation, order="asc")]  # type: ignore[union-attr]


def test_what_was_backed_up_is_served_from_another_data_folder_and_nothing_is_ever_overwritten(site, tmp_path: Path):
    first, second = site("first"), site("second")
    first.deskmate("backup", "early", code=3)
    first.up()
    key = json.loads(first.deskmate("key", "create", "--user", "Ada", "--json").stdout)["key"]
    client = first.client(key)
    conversation = client.conversations.create(metadata={"topic": "soup"})
    client.responses.create(input="What is in it?", conversation=conversation.id)
    said = texts(client, conversation.id)

    first.deskmate("backup", "running.backup")
    file = tmp_path / "running.backup"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "exists" in first.deskmate("backup", "running.backup", code=1).stderr
    assert "already runs" in first.deskmate("restore", "running.backup", code=4).stderr
    first.deskmate("down")
    first.deskmate("backup", "stopped.backup")
    assert "holds data already" in first.deskmate("restore", "stopped.backup", code=1).stderr

    broken = tmp_path / "broken.backup"
    broken.write_bytes(file.read_bytes()[:-100])
    assert "cut off or altered" in second.deskmate("restore", "broken.backup", code=1).stderr
    second.deskmate("restore", "stopped.backup")
    assert (second.home.secrets / "redis-password").read_text() != (first.home.secrets / "redis-password").read_text()
    second.up()
    assert texts(second.client(key), conversation.id) == said
    assert len(said) == 2
    assert second.client(key).conversations.retrieve(conversation.id).metadata["topic"] == "soup"  # type: ignore[index]


def test_up_on_data_of_a_later_release_or_of_half_a_restore_says_so_and_ends_with_78(site):
    one = site("one")
    one.up()
    with one.redis() as redis_client:
        redis_client.hset("dm:meta", "data_version", 99)
    assert "has version 99" in one.deskmate("user", "list", code=78).stderr
    one.deskmate("down")
    refused = one.up(code=78)
    assert "has version 99" in refused.stdout + refused.stderr
    assert "version 99" in one.deskmate("backup", "x", code=78).stderr
