"""A whole compose stack for the tests: a copy of the repository, prepared by compose-init and started."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

from deploy.checkout import files_of
from tests.containers.engine import Engine
from tests.docs.commands import commands, shell
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("redis", "worker-cpu", "gateway", "prometheus", "grafana", "node-exporter")
VERSION = "0.0.0-test"  # the images' tag: those of an installation on this engine stay as they are


class Stack:
    """`docker compose` in a checkout of its own, under a project name of its own, on free ports."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.checkout = folder / "checkout"
        self.model = folder / "tiny"
        self.port, self.grafana_port = free_ports(engine)
        self.url = f"http://127.0.0.1:{self.port}"
        self.project = f"deskmate-test-{os.getpid()}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DESKMATE_", "COMPOSE_"))},
            "COMPOSE_PROJECT_NAME": self.project,
            "DESKMATE_HOME": str(folder / "home"),
            "DESKMATE_VERSION": VERSION,
            "DESKMATE_PORT": str(self.port),
            "DESKMATE_GRAFANA_PORT": str(self.grafana_port),
            "DESKMATE_WORKER_MEMORY": "5gb",
        }

    def prepare(self) -> str:
        """What compose-init said. The wheels come from where this environment's own lie."""
        for file in files_of(ROOT, ()):
            target = self.checkout / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        home = self.folder / "home"
        home.mkdir()
        (home / "env").symlink_to(sys.prefix)
        (cache := Path(sys.prefix).parent / "cache").mkdir(exist_ok=True)
        (home / "cache").symlink_to(cache)
        recipe = hashlib.sha256((ROOT / "tests" / "tiny_model.py").read_bytes()).hexdigest()[:16]
        shutil.copytree(make_tiny_model(cache / f"tiny-{recipe}"), self.model)
        subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(self.model)], check=True)
        return self.init()

    def init(self) -> str:
        """As the docs say."""
        model = {"/srv/models/Qwen2.5-1.5B-Instruct": self.model}
        done = self.types(commands("compose-init", self.differences | model))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def differences(self) -> dict[str, object]:
        """Of what the docs say from what a test can do."""
        return {"--gpu": "--cpu", "https://deskmate.example.org": self.url}

    def types(self, text: str, seconds: float = 580) -> subprocess.CompletedProcess[str]:
        return shell(text, self.checkout, self._environment, seconds)

    def compose(self, *words: str, check: bool = True, seconds: float = 580) -> subprocess.CompletedProcess[str]:
        options = {"cwd": self.checkout, "env": self._environment, "timeout": seconds}
        return self.engine.docker("compose", *words, check=check, **options)

    def up(self, *words: str) -> None:
        done = self.compose("up", "--wait", *words, check=False)
        if done.returncode:
            logs = self.compose("logs", "--tail", "15", check=False).stdout
            raise AssertionError(f"docker compose up: {done.stderr[-3000:]}\n{logs}")

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5", check=False)

    def execute(self, service: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.compose("exec", "-T", service, *words, check=check)

    def container(self, service: str) -> dict[str, Any]:
        """What the engine says of the service's container."""
        id = self.compose("ps", "--all", "--quiet", service).stdout.strip()
        return json.loads(self.engine.docker("inspect", id).stdout)[0]  # type: ignore[no-any-return]

    def address(self, service: str, network: str) -> str:
        return str(self.container(service)["NetworkSettings"]["Networks"][f"{self.project}_{network}"]["IPAddress"])

    def process(self, service: str) -> int:
        """The pid, on this machine, of the server itself: the child of the container's init."""
        init = self.container(service)["State"]["Pid"]
        return int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])

    @contextmanager
    def client(self, key: str) -> Iterator[OpenAI]:
        """The official client, outside: this thread is where the published ports are."""
        with self.engine.network(), OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=300) as client:
            yield client

    def health(self, service: str) -> str:
        return str(self.container(service)["State"]["Health"]["Status"])


def free_ports(engine: Engine) -> Sequence[int]:
    with engine.network(), socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]
