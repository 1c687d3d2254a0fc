"""A CPU bundle on a machine without a network: from `tar -xf` to an answer. Knows no insides of any part.

The machine is a network namespace with nothing but loopback, an empty home and no settings of pip. Its wheels are
those of an earlier call where there was one (`cache/wheels` beside the environment that runs the tests).
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.home import Home
from deploy.install import runtime_lock
from tests.docs.commands import commands, shell
from tests.servers import missing

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PORT = "8000"  # free in a namespace of one's own
SECONDS = 400.0
ASK = """
import json, sys, urllib.request
body = {"model": "SmolLM2-135M-Instruct", "temperature": 0, "max_tokens": 16,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}
headers = {"Authorization": f"Bearer {sys.argv[2]}", "Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), headers)
with urllib.request.urlopen(request, timeout=120) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
"""


class Island:
    """A network namespace that is left to itself, and a person in it who has nothing but the bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir(parents=True)
        as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._holder = subprocess.Popen(
            ["unshare", *as_root, "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        first = self._holder.stdout.readline()
        if first != "up\n":
            self.close()
            missing(f"network namespace ({first.strip()})")
        entering = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self._enter = ["nsenter", "--target", str(self._holder.pid), "--net", *entering, f"--wd={folder}"]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        python = Path(sys.executable).resolve().parent
        environment = {
            "HOME": str(self.folder / "home"),
            "PATH": f"{python}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_CONFIG_FILE": os.devnull,
            "XDG_CONFIG_DIRS": str(self.folder / "home"),
        }
        return subprocess.run(
            [*self._enter, *words], env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )

    def deskmate(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("./deskmate/deskmate", *words)

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The file and the digest that was told, made with the wheels of an earlier call where there was one."""
    home = Home(tmp_path / "maker")
    home.create()
    if sys.prefix != sys.base_prefix:
        home.env.symlink_to(sys.prefix)
        stock = Home(Path(sys.prefix).parent).cache / "wheels"
        stock.mkdir(parents=True, exist_ok=True)
        (home.cache / "wheels").symlink_to(stock)
    file = tmp_path / "deskmate.tar"
    typed = commands("bundle", {"deskmate.tar": file})
    done = shell(typed, ROOT, {"DESKMATE_HOME": str(home.folder)}, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^Digest: ([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    assert told, done.stdout
    yield file, told[1]
    file.unlink(missing_ok=True)


@pytest.fixture
def island(tmp_path: Path) -> Iterator[Island]:
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            missing(f"{tool} (apt install util-linux iproute2)")
    one = Island(tmp_path / "ein Ordner, für alle")
    yield one
    one.deskmate("down")
    one.close()
    shutil.rmtree(one.folder)


def test_a_machine_that_has_never_seen_a_network_installs_from_a_bundle_and_answers(
    bundle: tuple[Path, str], island: Island
):
    if runtime_lock().name != "cpu" or platform.python_version_tuple()[:2] != ("3", "11"):
        pytest.skip("a CPU bundle is for machines without an NVIDIA card and with Python 3.11")
    file, digest = bundle
    assert island.run("ip", "route").stdout == ""

    up = island.run("bash", "-ec", commands("bundle-up", {"deskmate.tar": file, "DIGEST": digest}))
    print(up.stdout)
    assert up.returncode == 0, up.stderr + island.deskmate("logs").stdout
    assert digest in up.stdout
    home = Home(island.folder / "deskmate" / "var")
    assert not (home.folder / "bundle").exists()

    made = island.deskmate("key", "create", "--user", "Ada", "--json")
    address = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    answer = island.run(str(home.python), "-c", ASK, address, json.loads(made.stdout)["key"])
    assert "Paris" in answer.stdout, answer.stderr
    assert list((island.folder / "home").iterdir()) == []
    assert island.deskmate("down").returncode == 0

    file.unlink()  # a later `up` needs neither bundle nor network: it comes as far as reading a model
    again = island.deskmate("up", "--detach", "--port", PORT, "--model", str(island.folder / "home"))
    assert again.returncode == 78
    assert "the model directory is empty" in again.stderr
    assert "environment" not in again.stdout
