"""The worker, from the command line to a real vLLM on CPU: plan, metrics, answers, stop. One start for all of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import IO, Any

import pytest

from tests.tiny_model import make_tiny_model
from worker.stages import Stage, stage_of
from worker.vram import family

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
START_SECONDS = 300
STOP_SECONDS = 60


class SocketConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@dataclass
class Running:
    process: subprocess.Popen[str]
    socket: Path
    plan_file: Path
    stages: list[Stage]
    said: list[str]

    @contextmanager
    def request(self, method: str, path: str, body: object = None) -> Iterator[HTTPResponse]:
        with closing(SocketConnection(self.socket)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"content-type": "application/json"})
            with closing(connection.getresponse()) as response:
                yield response

    def json(self, method: str, path: str, body: object = None) -> Any:
        with self.request(method, path, body) as response:
            content = response.read()
            assert response.status == 200, content
            return json.loads(content)

    def text(self, path: str) -> str:
        with self.request("GET", path) as response:
            return response.read().decode()


@pytest.fixture(scope="module")
def tiny(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return make_tiny_model(pytestconfig.cache.mkdir("models") / "tiny-qwen2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has a space and a letter beyond ASCII."""
    folder = tmp_path_factory.mktemp("w") / "my dësk"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def worker(tiny: Path, place: Path) -> Iterator[Running]:
    left_behind = place / "w.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(left_behind))  # as an earlier vLLM would leave it
    running = start(tiny, place, ["--served-name", "tiny", "--seats", "4"])
    try:
        yield running
    finally:
        end(running.process)


def start(model: Path, place: Path, options: list[str], until: Stage = Stage.SERVE) -> Running:
    """Starts the worker in a session of its own and reads its log until the stage has begun."""
    command = [sys.executable, "-m", "worker", "--model", str(model), "--uds", str(place / "w.sock"),
               "--plan-file", str(place / "plan.json"), *options]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "VLLM_CACHE_ROOT": str(model.with_name("vllm-cache"))},  # makes the next start faster
    )  # fmt: skip
    running = Running(process, place / "w.sock", place / "plan.json", [], lines := [])
    killer = time.monotonic() + START_SECONDS
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if stage := stage_of(line):
            running.stages.append(stage)
        if until in running.stages:
            Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
            return running
        assert time.monotonic() < killer, "".join(lines)
    end(process)
    raise AssertionError("".join(lines))


def _listen(pipe: IO[str], lines: list[str]) -> None:
    """To its end: a worker whose full pipe nobody reads would stand still."""
    with suppress(ValueError):  # closed meanwhile
        lines.extend(pipe)


def end(process: subprocess.Popen[str]) -> None:
    """The whole session, whatever state it is in."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_gone_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_start_went_through_every_stage_in_order(worker: Running) -> None:
    assert worker.stages == list(Stage)


def test_the_plan_is_served_and_is_the_one_written_before_the_start(worker: Running, tiny: Path) -> None:
    served = worker.json("GET", "/deskmate/plan")
    assert served == json.loads(worker.plan_file.read_text())
    assert (served["model"]["id"], served["model"]["path"], served["seats"]) == ("tiny", str(tiny), 4)


def test_what_was_planned_is_what_vllm_has(worker: Running) -> None:
    plan = worker.json("GET", "/deskmate/plan")
    (model,) = worker.json("GET", "/v1/models")["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", plan["context_tokens"])
    cache = next(line for line in worker.text("/metrics").splitlines() if line.startswith("vllm:cache_config_info{"))
    assert f'kv_cache_size_tokens="{plan["kv_tokens"]}"' in cache
    assert f'block_size="{plan["block_tokens"]}"' in cache
    assert 'prefix_caching_hash_algo="sha256"' in cache


def test_metrics_of_ours_stand_beside_vllms(worker: Running) -> None:
    metrics = worker.text("/metrics")
    assert "vllm:num_requests_running" in metrics
    assert "deskmate_worker_seats 4.0" in metrics
    assert 'deskmate_worker_info{architecture="Qwen2ForCausalLM",demo="0",device="cpu"' in metrics
    by_process = [line for line in metrics.splitlines() if line.startswith("deskmate_worker_memory_process_bytes{")]
    assert any("VLLM::EngineCor" in line for line in by_process)
    assert any(f'pid="{worker.process.pid}"' in line for line in by_process)


def test_the_openmp_of_the_environment_is_really_loaded(worker: Running) -> None:
    engine = next(pid for pid in family(worker.process.pid) if "Engine" in Path(f"/proc/{pid}/comm").read_text())
    assert str(Path(sys.prefix) / "lib" / "libiomp5.so") in Path(f"/proc/{engine}/maps").read_text()


def test_a_chat_is_answered_with_its_token_ids_and_cached_tokens(worker: Running) -> None:
    body = {
        "model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": True, "priority": 3,
        "cache_salt": "one", "messages": [{"role": "user", "content": "hello " * 300}],
    }  # fmt: skip
    first, again = (worker.json("POST", "/v1/chat/completions", body) for _ in range(2))
    assert len(first["choices"][0]["token_ids"]) == first["usage"]["completion_tokens"]
    assert len(first["prompt_token_ids"]) == first["usage"]["prompt_tokens"]
    assert again["choices"][0]["token_ids"] == first["choices"][0]["token_ids"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128


def test_an_answer_of_a_given_form_works_without_triton(worker: Running) -> None:
    schema = {"type": "boolean"}
    answer = worker.json("POST", "/v1/chat/completions", {
        "model": "tiny", "max_tokens": 20, "temperature": 0, "messages": [{"role": "user", "content": "yes?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}},
    })  # fmt: skip
    assert json.loads(answer["choices"][0]["message"]["content"]) in (True, False)


def test_a_second_worker_on_the_same_socket_is_refused_within_three_seconds(worker: Running, tiny: Path) -> None:
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "--model", str(tiny), "--uds", str(worker.socket)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (69, 1)
    assert str(worker.socket) in ended.stderr
    assert time.monotonic() - begun < 3
    assert worker.json("GET", "/v1/models")["data"]


def test_a_stop_lets_the_running_answer_end_and_leaves_no_process(worker: Running) -> None:
    """The last test of this start."""
    pids = family(worker.process.pid)
    assert len(pids) >= 2
    long_answer = {
        "model": "tiny", "max_tokens": 200, "ignore_eos": True, "stream": True,
        "messages": [{"role": "user", "content": "go on"}],
    }  # fmt: skip
    with worker.request("POST", "/v1/chat/completions", long_answer) as response:
        response.readline()
        worker.process.send_signal(signal.SIGTERM)
        try:
            answer = response.read()
        except TimeoutError:
            pytest.fail("".join(worker.said[-100:]))
        assert b"data: [DONE]" in answer
    assert all_gone_within(pids, STOP_SECONDS)
    assert worker.process.wait() == 0


@pytest.mark.parametrize("stage", [Stage.IMPORT, Stage.WEIGHTS])
def test_a_stop_while_it_loads_ends_with_the_second_sigterm_at_the_latest(
    tiny: Path, tmp_path: Path, stage: Stage
) -> None:
    running = start(tiny, tmp_path, [], until=stage)
    try:
        pids = family(running.process.pid)
        running.process.send_signal(signal.SIGTERM)
        if not all_gone_within(pids, 10):
            running.process.send_signal(signal.SIGTERM)
        assert all_gone_within(pids, STOP_SECONDS)
    finally:
        end(running.process)


def test_a_port_in_use_ends_the_start_with_69_and_its_owner(tiny: Path) -> None:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        begun = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "worker", "--model", str(tiny), "--port", str(port)],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert ended.returncode == 69
    assert f"port {port}" in ended.stderr
    assert f"process {os.getpid()} " in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - begun < 3
