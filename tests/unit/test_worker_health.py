"""`python -m worker.health` against a scripted worker: what counts as healthy. Knows no vLLM."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from worker.health import Unhealthy, Worker, check

METRICS = """\
# HELP vllm:generation_tokens_total Number of generation tokens processed.
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
vllm:iteration_tokens_total_count{{engine="0",model_name="m"}} {steps}
vllm:num_requests_running{{engine="0",model_name="m"}} 1.0
"""


@dataclass
class Script:
    """What the worker does: `answers` a completion or lets it wait; each look at its metrics may show another step."""

    answers: bool = True
    status: int = 200
    steps_a_look: int = 0
    looks: int = 0
    asked: list[dict[str, object]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def metrics(self) -> str:
        self.looks += 1
        return METRICS.format(tokens=7.0, steps=float(self.steps_a_look * self.looks))


@contextmanager
def scripted(script: Script) -> Iterator[Worker]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, script.metrics() if self.path == "/metrics" else json.dumps({"data": [{"id": "m"}]}))

        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if not script.answers:
                script.over.wait()
                return
            self.reply(script.status, "{}")

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Worker("127.0.0.1", server.server_port)
        finally:
            script.over.set()
            server.shutdown()
            thread.join()


def test_one_token_is_asked_for_and_its_answer_is_health():
    script = Script()
    with scripted(script) as worker:
        assert check(worker, 4) == "answers"
    assert script.asked == [{"model": "m", "prompt": "Hello", "max_tokens": 1}]


def test_a_worker_too_busy_to_answer_is_healthy_while_its_engine_moves():
    with scripted(Script(answers=False, steps_a_look=1)) as worker:
        assert check(worker, 1) == "busy, and moving"


def test_an_engine_that_stands_still_is_not_healthy_and_the_check_ends_in_its_time():
    started = time.monotonic()
    with scripted(Script(answers=False)) as worker, pytest.raises(Unhealthy, match="stands still"):
        check(worker, 1)
    assert time.monotonic() - started < 5


def test_an_error_instead_of_a_token_is_not_healthy():
    with scripted(Script(status=500)) as worker, pytest.raises(Unhealthy, match="/v1/completions answers 500"):
        check(worker, 4)


def test_the_command_says_in_one_line_why_nothing_answers():
    done = subprocess.run(
        [sys.executable, "-m", "worker.health", "--port", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("worker: unhealthy: no answer from http://127.0.0.1:1/metrics: ")
    assert done.stderr.count("\n") == 1
