"""`./deskmate` as a person calls it: from odd places, with wrong words, without an environment. Knows no stack."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import EXIT_CODES, Refusal
from deploy.home import Home
from deploy.narrator import Narrator
from deploy.redis import DURABILITIES, Server, choose, configuration, embedded_server, memory_limit_bytes
from deploy.status import PartStatus, StageStatus, Status
from deploy.wishes import Sockets, Wishes, gateway_settings

ROOT = Path(__file__).resolve().parents[2]


def deskmate(*words: str, script: Path = ROOT / "deskmate", **options: object) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
    environment = {**given, **options.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [str(script), *words], env=environment, capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The launcher in a folder with blanks, a character beyond ASCII and a path of more than 150 characters."""
    folder = tmp_path / "ein Ordner für Deskmate" / ("x" * max(1, 150 - len(str(tmp_path))))
    folder.mkdir(parents=True)
    assert len(str(folder)) > 150
    shutil.copy(ROOT / "deskmate", folder)
    for package in ("deploy", "worker"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_it_runs_from_an_odd_path_any_folder_and_through_a_link(checkout: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deploy").mkdir(parents=True)  # a folder of the same name must not be taken for ours
    link = elsewhere / "link"
    link.symlink_to(os.path.relpath(checkout / "deskmate", elsewhere))
    for script in (checkout / "deskmate", link):
        done = deskmate("status", "--json", script=script, cwd=elsewhere)
        assert done.returncode == 3
        assert json.loads(done.stdout) == {"ready": False, "address": None, "model": None, "parts": []}


@pytest.mark.parametrize("words", [["status"], ["down"], ["logs"], ["doctor"], ["user", "list"], ["key", "list"]])
def test_commands_that_only_look_make_nothing(checkout: Path, words: list[str]):
    deskmate(*words, script=checkout / "deskmate")
    assert not (checkout / "var").exists()


@pytest.mark.parametrize(
    "words",
    [["status"], ["down"], ["restart", "gateway"], ["logs"], ["user", "list"], ["key", "create", "--user", "Ada"]],
)
def test_without_a_running_stack_they_say_so_with_exit_code_3(tmp_path: Path, words: list[str]):
    done = deskmate(*words, environment={"DESKMATE_HOME": str(tmp_path / "var")})
    assert done.returncode == 3
    assert str(tmp_path / "var") in done.stderr


def test_without_python_or_venv_it_says_what_to_install(tmp_path: Path):
    for name in ("bash", "dirname", "readlink"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = deskmate("up", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "apt install python3" in done.stderr

    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 3;; esac\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    done = deskmate("up", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["fly"], 2, "fly"),
        (["up", "--port", "many"], 2, "many"),
        (["up", "--tls-cert", "cert.pem"], 2, "--tls-key"),
        (["up", "--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"], 78, "/no/cert.pem"),
        (["up", "--model", "/no/such/model"], 78, "/no/such/model"),
        (["up", "--model", "/tmp", "--worker-url", "http://there:1"], 2, "--worker-url"),
        (["up", "--worker-url", "there"], 2, "there"),
        (["logs", "printer"], 2, "printer"),
        (["up", "--seats", "0"], 2, "--seats"),
        (["up", "--gateways", "0"], 2, "--gateways"),
        (["up", "--durability", "perhaps"], 2, "perhaps"),
        (["up", "--durability", "everysec", "--redis-url", "redis://there:1"], 2, "--durability"),
        (["restart", "redis"], 2, "redis"),
    ],
)
def test_what_cannot_work_is_refused_by_name_before_anything_is_installed(
    tmp_path: Path, words: list[str], code: int, named: str
):
    done = deskmate(*words, environment={"DESKMATE_HOME": str(tmp_path / "var")})
    assert done.returncode == code
    assert named in done.stderr
    assert not (tmp_path / "var").exists()


def test_a_taken_port_is_refused_before_anything_is_installed(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = deskmate("up", "--port", port, environment={"DESKMATE_HOME": str(tmp_path / "var")})
    assert done.returncode == 69
    assert f"port {port}" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert not (tmp_path / "var").exists()


def test_help_lists_every_exit_code_and_every_refusal_has_a_listed_one():
    text = deskmate("--help").stdout
    assert all(f"{code:3}  {meaning}" in text for code, meaning in EXIT_CODES)
    assert {kind.exit_code for kind in Refusal.__subclasses__()} <= {code for code, _ in EXIT_CODES}


def test_prometheus_accepts_our_configuration():
    done = subprocess.run(
        ["promtool", "check", "config", str(ROOT / "monitoring" / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


REDIS = Server("redis", "7.0.15", Path("/usr/bin/redis-server"))
VALKEY = Server("valkey", "9.1.2", Path("/env/valkey-server"))


def test_data_stays_with_the_server_that_wrote_it():
    assert choose(REDIS, VALKEY, None) == REDIS
    assert choose(None, VALKEY, None) == VALKEY
    assert choose(REDIS, VALKEY, "valkey") == VALKEY
    assert choose(None, VALKEY, "redis") == VALKEY
    with pytest.raises(Refusal, match="apt install redis-server"):
        choose(None, None, None)


def test_the_embedded_server_of_this_environment_is_found():
    found = embedded_server(Path(sys.prefix))
    assert found is not None
    assert found.kind == "valkey"


def test_redis_gets_an_eighth_of_the_memory_within_bounds():
    gib = 1 << 30
    assert [memory_limit_bytes(size) for size in (gib, 24 * gib, 512 * gib)] == [gib // 4, 3 * gib, 8 * gib]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_the_embedded_server_keeps_writes_as_it_was_asked_to(tmp_path: Path, durability: str):
    found = embedded_server(Path(sys.prefix))
    assert found is not None
    file = tmp_path / "redis.conf"
    file.write_text(configuration(tmp_path / "s", "secret", 1 << 28, durability))
    with subprocess.Popen([found.binary, file], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert any("eady to accept connections" in line for line in server.stdout)
        server.terminate()
    assert f"appendfsync {durability}" in file.read_text() and (tmp_path / "appendonlydir").is_dir()


def test_a_persons_settings_reach_the_gateway_and_what_the_run_decides_wins(tmp_path: Path):
    given = {"DESKMATE_TEMPERATURE": "0.3", "DESKMATE_PORT": "1", "DESKMATE_HOME": "/x", "PATH": "/bin"}
    settings = gateway_settings(Wishes(port=9000), Home(tmp_path), Sockets(Path("/tmp/d")), given)
    assert settings["DESKMATE_TEMPERATURE"] == "0.3"
    assert settings["DESKMATE_PORT"] == "9000"
    assert settings["DESKMATE_WORKER_URLS"] == "unix:/tmp/d/worker.sock"
    assert "DESKMATE_HOME" not in settings
    assert "PATH" not in settings


def test_parts_that_run_elsewhere_are_handed_to_the_gateway_as_they_are(tmp_path: Path):
    wishes = Wishes(redis_url="redis://there:6379/0", worker_urls=("http://a:1", "http://b:2"), seats=8)
    settings = gateway_settings(wishes, Home(tmp_path), Sockets(Path("/tmp/d")), {})
    assert settings["DESKMATE_REDIS_URL"] == "redis://there:6379/0"
    assert settings["DESKMATE_WORKER_URLS"] == "http://a:1,http://b:2"
    assert settings["DESKMATE_SEATS"] == "8"
    assert not {"DESKMATE_PLAN_FILE", "DESKMATE_REDIS_PASSWORD_FILE"} & settings.keys()


@pytest.mark.parametrize(
    ("wishes", "address", "warns"),
    [
        (Wishes(), "http://127.0.0.1:8000", False),
        (Wishes(host="10.0.0.5"), "http://10.0.0.5:8000", True),
        (Wishes(host="10.0.0.5", tls_cert=Path("/c")), "https://10.0.0.5:8000", False),
        (Wishes(host="::1", port=9), "http://[::1]:9", False),
        (Wishes(public_url="https://chat.example/"), "https://chat.example", False),
    ],
)
def test_the_address_is_what_a_person_types_and_a_network_without_tls_is_warned_of(
    wishes: Wishes, address: str, warns: bool
):
    assert wishes.address == address
    assert wishes.is_open_without_tls == warns


def test_the_start_is_told_once_each_with_link_key_command_and_the_demo_note():
    said: list[str] = []
    narrator = Narrator(Wishes(), said.append, lambda: "http://127.0.0.1:8000/#link=once")
    parts = tuple(PartStatus(name, "ready", 0.0, 1) for name in ("redis", "gateway", "worker", "engine"))
    status = Status(
        "http://127.0.0.1:8000", 1, 1, 0.0, "Small", True, parts, (StageStatus("redis", "done", 0.0, 0.1, "Redis 7"),)
    )
    for _ in range(2):
        narrator.tell(status)
    text = "\n".join(said)
    assert text.count("http://127.0.0.1:8000/#link=once") == 1
    assert text.count("Redis answers (Redis 7)") == 1
    assert text.count("./deskmate key create --user NAME") == 1
    assert text.count("./deskmate up --model /path/to/Qwen2.5-1.5B-Instruct") == 1
