"""What the documentation says of the launcher, typed as it stands, in one order that an administrator could have.

The engine is scripted; everything else is real. The tests go on from one another.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.docs.checkout import cloned, commit, lend_environment, need_environment, published
from tests.docs.commands import commands, shell
from tests.fake_worker import FakeWorker

SECONDS = 240.0
HERE = "127.0.0.1:8000"


class Desk:
    """The administrator's checkout, cloned from where releases are published."""

    def __init__(self, folder: Path, worker_url: str) -> None:
        need_environment()
        self.origin = published(folder / "origin")
        self.checkout = cloned(self.origin, folder / "srv" / "deskmate")
        lend_environment(self.checkout)
        self.port, self.tls_port = free_port(), free_port()
        self.environment = {"DESKMATE_PORT": str(self.port), "DESKMATE_WORKER_URLS": worker_url, "HOME": str(folder)}

    def types(self, text: str, code: int = 0) -> str:
        done = shell(text, self.checkout, self.environment, SECONDS)
        assert done.returncode == code, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def follows(self, name: str, changes: Mapping[str, object] | None = None) -> str:
        """What the commands of that name print."""
        return self.types(commands(name, changes))

    def names(self) -> set[str]:
        return {person["name"] for person in json.loads(self.types("./deskmate user list --json"))}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with FakeWorker() as worker:
        one = Desk(tmp_path_factory.mktemp("administrator"), worker.url)
        yield one
        subprocess.run(["./deskmate", "down"], cwd=one.checkout, capture_output=True, check=False)


def test_a_first_start_is_looked_at_and_people_get_in(desk: Desk):
    assert "MISSING" not in desk.follows("doctor")
    assert f"http://127.0.0.1:{desk.port}/#link=" in desk.follows("up")
    told = desk.follows("look")
    assert told.startswith("ready ")
    assert "gateway" in told
    assert "/#link=" in desk.follows("administrator-link")
    told = desk.follows("people")
    assert "/#link=" in told
    assert "ada" in told.splitlines()[-1]
    told = desk.follows("limits").splitlines()
    assert "0 of 5,000,000" in told[1] and "person" in told[1] and "120" in told[2]
    assert "0 of no limit" in told[-2] and "installation" in told[-2]
    told = desk.follows("key", {HERE: f"127.0.0.1:{desk.port}"})
    assert '"fake"' in told
    assert "notebook" in told.splitlines()[-1]
    desk.follows("ask", {HERE: f"127.0.0.1:{desk.port}", "SmolLM2-135M-Instruct": "fake"})
    assert "front-end" in desk.follows("front-end").splitlines()[-1]
    told = desk.follows("metrics", {HERE: f"127.0.0.1:{desk.port}"})
    assert 'deskmate_up{part="redis"} 1.0' in told


def test_a_backup_an_upgrade_and_the_way_back(desk: Desk):
    desk.follows("backup")
    assert (desk.checkout / "deskmate.backup").stat().st_mode & 0o777 == 0o600
    log = desk.origin / "CHANGELOG.md"
    log.write_text(log.read_text() + "- The second release.\n")
    commit(desk.origin, "The second release")
    desk.follows("upgrade")
    assert "The second release." in (desk.checkout / "CHANGELOG.md").read_text()
    desk.types("./deskmate user create bea")
    desk.follows("back")
    assert "The second release." not in (desk.checkout / "CHANGELOG.md").read_text()
    assert desk.names() == {"admin", "ada", "front-end", "prometheus"}
    desk.follows("down")
    desk.types("./deskmate status", code=3)


def test_a_certificate_of_the_gateways_own(desk: Desk):
    desk.follows("tls-trial")
    told = desk.follows("tls", {"/etc/ssl/deskmate/": "", "8443": desk.tls_port})
    address = f"https://deskmate.example.org:{desk.tls_port}"
    assert f"served at {address}" in told
    place = f"deskmate.example.org:{desk.tls_port}:127.0.0.1"
    desk.types(f"curl --fail --silent --cacert fullchain.pem --resolve {place} {address}/healthz")
    desk.follows("down")


def test_behind_nginx_it_has_the_name_that_people_type(desk: Desk):
    assert "served at https://deskmate.example.org" in desk.follows("behind-nginx")
    asked = f"curl --silent --output answer --write-out '%{{http_code}}' http://127.0.0.1:{desk.port}/v1/models"
    assert desk.types(f"{asked} -H 'Host: deskmate.example.org'") == "401"
    assert desk.types(f"{asked} -H 'Host: elsewhere.example.org'") == "400"


def test_all_is_removed_and_comes_back_from_the_backup_with_several_gateways(desk: Desk):
    desk.follows("remove")
    assert not (desk.checkout / "var").exists()
    lend_environment(desk.checkout)
    desk.follows("restore")
    assert "The gateway was restarted." in desk.follows("gateways")
    assert "gateway-2" in desk.types("./deskmate status")
    assert desk.names() == {"admin", "ada", "front-end", "prometheus"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


if shutil.which("git") is None:
    pytest.skip("no git on this machine", allow_module_level=True)
