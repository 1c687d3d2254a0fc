"""The whole supervisor as its own process, with a real Redis and stand-ins for gateway and worker. Knows no vLLM."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import control
from deploy.door import BACKLOG, SEND_BUFFER_BYTES, opened
from deploy.errors import Refusal
from deploy.home import Home
from deploy.processes import processes
from gateway import server

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60.0
MARK = "LAUNCHER_TEST_MARK"

SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
from deploy.errors import Refusal
from deploy.home import Home
from deploy.local import Stack
from deploy.wishes import Wishes
home, root, port, model, gateways = sys.argv[1:6]
wishes = Wishes(port=int(port), model=Path(model) if model else None, gateways=int(gateways))
try:
    asyncio.run(Stack(Home(Path(home)), Path(root), wishes, os.environ).run())
except Refusal as refusal:
    print(refusal, file=sys.stderr)
    sys.exit(refusal.exit_code)
"""

GATEWAY = """
import json, os, signal, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
if Path("bad-gateway").exists(): sys.exit("no such setting")
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *words): pass
def on_term(number, frame):
    with open("events", "a") as events: events.write("gateway ended\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
Path("gateway-environment").write_text(json.dumps({k: v for k, v in os.environ.items() if k.startswith("DESKMATE_")}))
server = HTTPServer(("", 0), Page, bind_and_activate=False)
server.socket = socket.socket(fileno=int(os.environ["DESKMATE_LISTEN_FD"]))
print("gateway: listening on", server.socket.getsockname(), flush=True)
server.serve_forever()
"""

WORKER = """
import json, os, signal, socket, socketserver, subprocess, sys, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = Path(arguments["--model"])
if (model / "bad").exists():
    print(f"worker: {model} holds no tokenizer", file=sys.stderr)
    sys.exit(78)
Path(arguments["--plan-file"]).write_text(json.dumps({"model": {"id": model.name, "demo": False}}))
ENGINE = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'VLLM::EngineCore'); time.sleep(600)"
def on_term(number, frame):
    engine.terminate()
    with socket.socket(socket.AF_UNIX) as redis:
        redis.connect(str(Path(arguments["--uds"]).with_name("redis.sock")))
    with open("events", "a") as events: events.write("worker ended, Redis still there\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
engine = subprocess.Popen([sys.executable, "-c", ENGINE])
print("non-default args: {}", flush=True)
time.sleep(0.3)
print("Starting to load model", flush=True)
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words): pass
    def address_string(self): return "socket"
socketserver.ThreadingUnixStreamServer(arguments["--uds"], Health).serve_forever()
"""


class Machine:
    """A folder with stand-ins, a data folder, and the supervisors started on them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "stand-ins with ü"
        for package, text in (("gateway", GATEWAY), ("worker", WORKER)):
            (self.root / package).mkdir(parents=True)
            (self.root / package / "__main__.py").write_text(text)
        self.model = folder / "Some-Model"
        self.model.mkdir()
        self.home = Home(folder / "var")
        self.home.create()
        self.home.env.symlink_to(sys.prefix)
        self.port = free_port()
        self.gateways = 1
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen[str]] = []

    def up(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
        arguments = [str(self.home.folder), str(self.root), str(self.port), str(self.model), str(self.gateways)]
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, *arguments],
            cwd=ROOT,
            env={**environment, MARK: self.mark},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(supervisor)
        return supervisor

    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads(self.home.status_file.read_text())
        except FileNotFoundError:
            return {"ready": False, "pid": None, "parts": []}
        return status

    def part(self, name: str) -> dict[str, Any]:
        return next((part for part in self.status()["parts"] if part["name"] == name), {"state": None, "pid": None})

    def until(self, wanted: Any, supervisor: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (self.status()["pid"] == supervisor.pid and wanted()):
            assert time.monotonic() < deadline, self.status()
            assert supervisor.poll() is None, supervisor.stderr.read() if supervisor.stderr else ""
            time.sleep(0.01)

    def up_and_ready(self) -> subprocess.Popen[str]:
        supervisor = self.up()
        self.until(lambda: self.status()["ready"], supervisor)
        return supervisor

    def ask(self) -> int:
        """The pid of the gateway that answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=DEADLINE_SECONDS) as answer:
            return int(answer.read())

    def survivors(self) -> list[str]:
        """All that inherited this machine's mark, or works in its folders (Redis overwrites what it inherited)."""
        return [f"{one.pid} {one.name}" for one in processes() if one.running and self.is_ours(one.pid)]

    def is_ours(self, pid: int) -> bool:
        try:
            inherited = Path(f"/proc/{pid}/environ").read_bytes()
            folder = Path(f"/proc/{pid}/cwd").readlink()
        except OSError:
            return False
        return f"{MARK}={self.mark}".encode() in inherited or self.home.folder in folder.parents

    def until_nothing_runs(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.survivors():
            assert time.monotonic() < deadline, self.survivors()
            time.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path)
    yield one
    for supervisor in one.started:
        if supervisor.poll() is None:
            supervisor.send_signal(signal.SIGTERM)
        supervisor.communicate()
    one.until_nothing_runs()


def test_the_parts_come_up_in_order_and_the_status_file_lists_every_pid_and_stage(machine: Machine):
    machine.up_and_ready()
    status = machine.status()
    assert [part["name"] for part in status["parts"]] == ["redis", "gateway", "worker", "engine"]
    assert all(part["state"] == "ready" and part["pid"] for part in status["parts"])
    assert machine.part("engine")["pid"] != machine.part("worker")["pid"]
    assert (status["address"], status["model"], status["demo"]) == (
        f"http://127.0.0.1:{machine.port}",
        "Some-Model",
        False,
    )
    names = ["redis", "gateway", "plan", "import", "weights", "memory", "warmup", "serve"]
    assert [stage["name"] for stage in status["stages"]] == names
    assert all(stage["state"] == "done" and stage["seconds"] >= 0 for stage in status["stages"])
    assert machine.home.status_file.stat().st_mode & 0o777 == 0o600


def test_the_gateway_gets_its_settings_and_no_secret_stands_in_any_command_line(machine: Machine):
    machine.up_and_ready()
    settings = json.loads((machine.root / "gateway-environment").read_text())
    assert settings["DESKMATE_PORT"] == str(machine.port)
    assert settings["DESKMATE_REDIS_URL"].startswith("unix:///")
    assert settings["DESKMATE_WORKER_URLS"].startswith("unix:/")
    secret = Path(settings["DESKMATE_SECRET_FILE"])
    password = Path(settings["DESKMATE_REDIS_PASSWORD_FILE"])
    for file in (secret, password):
        assert file.stat().st_mode & 0o777 == 0o600
        assert len(file.read_text().strip()) >= 32
    for pid in (part["pid"] for part in machine.status()["parts"]):
        assert password.read_bytes().strip() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_ctrl_c_ends_the_gateway_then_the_worker_then_redis_and_leaves_nothing(machine: Machine):
    supervisor = machine.up_and_ready()
    sockets = Path(json.loads((machine.home.run / "stack.json").read_text())["sockets"])
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(DEADLINE_SECONDS) == 0
    assert (machine.root / "events").read_text().splitlines() == ["gateway ended", "worker ended, Redis still there"]
    assert machine.survivors() == []
    assert not sockets.exists()


@pytest.mark.parametrize("seed", range(6))
def test_ctrl_c_at_a_random_moment_of_the_start_leaves_no_process(machine: Machine, seed: int):
    supervisor = machine.up()
    machine.until(lambda: True, supervisor)
    time.sleep(random.Random(seed).uniform(0.0, 1.2))
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(DEADLINE_SECONDS) == 0
    assert machine.survivors() == []


@pytest.mark.parametrize("name", ["redis", "gateway", "worker", "engine"])
def test_every_part_that_is_killed_is_restarted(machine: Machine, name: str):
    supervisor = machine.up_and_ready()
    pid = machine.part(name)["pid"]
    os.kill(pid if name != "engine" else machine.part("worker")["pid"], signal.SIGKILL)
    machine.until(lambda: machine.status()["ready"] and machine.part(name)["pid"] not in (pid, None), supervisor)
    assert machine.part(name)["restarts"] == 1


def test_several_gateways_share_one_door_and_each_has_a_log_and_a_line(machine: Machine, capsys: Any):
    machine.gateways = 2
    machine.up_and_ready()
    names = ["redis", "gateway-1", "gateway-2", "worker", "engine"]
    assert [part["name"] for part in machine.status()["parts"]] == names
    settings = json.loads((machine.root / "gateway-environment").read_text())
    assert Path(settings["DESKMATE_METRICS_FOLDER"]).is_dir()
    control.show_status(machine.home, as_json=False)
    control.show_logs(machine.home, "gateway", 50, keep_on=False)
    lines = capsys.readouterr().out.splitlines()
    assert all(any(name in line and " ready " in line for line in lines) for name in names)
    assert all(any(line.startswith(f"{name}  gateway: listening on") for line in lines) for name in names[1:3])


def test_a_restart_replaces_one_gateway_after_the_other_and_their_guard_knows_the_new_ones(machine: Machine):
    machine.gateways = 2
    supervisor = machine.up_and_ready()
    before = [part["pid"] for part in machine.status()["parts"]]
    control.restart(machine.home, "gateway")
    after = [part["pid"] for part in machine.status()["parts"]]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False, True, True]
    assert machine.status()["ready"]
    assert machine.ask() in after[1:3]
    assert not set(before[1:3]) & {int(line.split()[0]) for line in machine.survivors()}
    supervisor.kill()
    supervisor.wait()
    machine.until_nothing_runs()


def test_a_successor_that_does_not_start_leaves_the_running_gateway_where_it_is(machine: Machine):
    supervisor = machine.up_and_ready()
    pid = machine.part("gateway")["pid"]
    (machine.root / "bad-gateway").touch()
    with pytest.raises(Refusal, match="does not start; its log says why"):
        control.restart(machine.home, "gateway")
    assert machine.ask() == pid
    (machine.root / "bad-gateway").unlink()
    os.kill(pid, signal.SIGKILL)
    machine.until(lambda: machine.part("gateway")["pid"] not in (pid, None) and machine.status()["ready"], supervisor)
    control.restart(machine.home, "gateway")
    assert machine.ask() == machine.part("gateway")["pid"]


def test_a_restart_of_the_worker_returns_when_the_next_one_answers(machine: Machine):
    machine.up_and_ready()
    pid = machine.part("worker")["pid"]
    control.restart(machine.home, "worker")
    assert machine.part("worker")["pid"] != pid
    assert machine.part("worker")["state"] == "ready"
    assert (machine.root / "events").read_text() == "worker ended, Redis still there\n"


def test_while_the_only_gateway_is_away_a_question_waits_and_is_answered(machine: Machine):
    machine.up_and_ready()
    pid = machine.part("gateway")["pid"]
    os.kill(pid, signal.SIGSTOP)  # takes nothing more: what comes now stands in the kernel's queue
    with socket.create_connection(("127.0.0.1", machine.port), timeout=DEADLINE_SECONDS) as waiting:
        waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
        os.kill(pid, signal.SIGKILL)
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert int(answer.split()[-1]) not in (pid, None)


def test_when_the_supervisor_is_killed_its_guard_ends_the_parts(machine: Machine):
    supervisor = machine.up_and_ready()
    sockets = Path(json.loads((machine.home.run / "stack.json").read_text())["sockets"])
    supervisor.kill()
    supervisor.wait()
    machine.until_nothing_runs()
    assert not sockets.exists()
    assert (machine.root / "events").read_text().splitlines() == ["gateway ended", "worker ended, Redis still there"]


def test_what_a_killed_supervisor_and_guard_left_is_ended_by_the_next_start(machine: Machine):
    supervisor = machine.up_and_ready()
    before = {part["pid"] for part in machine.status()["parts"]}
    guard = next(one for one in processes() if one.parent == supervisor.pid and one.pid not in before)
    os.kill(machine.part("worker")["pid"], signal.SIGSTOP)  # a worker that answers no signal but KILL
    os.kill(guard.pid, signal.SIGKILL)
    supervisor.kill()
    supervisor.wait()
    assert len(machine.survivors()) >= 4

    machine.up_and_ready()
    assert not before & {int(line.split()[0]) for line in machine.survivors()}


def test_a_worker_that_refuses_its_model_leaves_the_gateway_up_and_gives_its_exit_code(machine: Machine):
    (machine.model / "bad").touch()
    supervisor = machine.up()
    machine.until(lambda: machine.part("worker")["state"] == "failed", supervisor)
    machine.until(lambda: machine.part("engine")["state"] == "failed", supervisor)
    assert machine.part("worker")["message"] == f"worker: {machine.model} holds no tokenizer"
    assert machine.part("worker")["restarts"] == 0
    assert machine.part("gateway")["state"] == "ready"
    assert next(stage for stage in machine.status()["stages"] if stage["name"] == "plan")["state"] == "failed"
    supervisor.send_signal(signal.SIGTERM)
    output = supervisor.communicate(timeout=DEADLINE_SECONDS)[1]
    assert supervisor.returncode == 78
    assert "holds no tokenizer" in output


def test_a_taken_port_is_named_with_its_owner_and_nothing_is_started(machine: Machine):
    with socket.create_server(("127.0.0.1", machine.port)):
        supervisor = machine.up()
        output = supervisor.communicate(timeout=DEADLINE_SECONDS)[1]
    assert supervisor.returncode == 69
    assert f"port {machine.port}" in output
    assert f"pid {os.getpid()}" in output
    assert machine.survivors() == []


def test_the_door_is_as_a_gateway_would_open_it():
    assert (BACKLOG, SEND_BUFFER_BYTES) == (server._BACKLOG, server._SEND_BUFFER_BYTES)
    for ours, theirs in zip(opened("localhost", 0), server.listen("localhost", 0), strict=True):
        with ours, theirs:
            assert (ours.family, ours.gettimeout()) == (theirs.family, theirs.gettimeout()) == (ours.family, 0.0)
            sizes = [one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for one in (ours, theirs)]
            assert sizes[0] == sizes[1] != 0


def test_a_second_start_on_the_same_data_folder_is_refused_with_its_own_code(machine: Machine):
    first = machine.up_and_ready()
    second = machine.up()
    output = second.communicate(timeout=DEADLINE_SECONDS)[1]
    assert second.returncode == 4
    assert f"pid {first.pid}" in output
    assert machine.status()["ready"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
