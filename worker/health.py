"""`python -m worker.health`: is the model answering? Standard library only; knows neither the plan nor the gateway.

Healthy is a worker that answers one token, or one that is too busy for it and whose engine moves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

# Both grow while the engine works: by tokens, and by steps, which also a long prompt takes while no token comes.
PROGRESS = ("vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
LOOK_AGAIN_SECONDS = 0.5


class Unhealthy(Exception):
    """Why, in a sentence."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Every method raises Unhealthy for an answer that is none, TimeoutError when none comes in time."""

    host: str
    port: int

    def ask(self, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None) -> bytes:
        connection = HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError:
            raise
        except (OSError, HTTPException) as error:
            raise Unhealthy(f"no answer from http://{self.host}:{self.port}{path}: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise Unhealthy(f"{path} answers {answer.status}: {text[:200].decode(errors='replace')}")
        return text

    def answers(self, seconds: float) -> bool:
        """One token within the time, or False."""
        try:
            model = json.loads(self.ask("GET", "/v1/models", seconds))["data"][0]["id"]
            self.ask("POST", "/v1/completions", seconds, {"model": model, "prompt": "Hello", "max_tokens": 1})
        except TimeoutError:
            return False
        return True

    def progress(self, seconds: float) -> float:
        """What the engine has done since it started: only its growth means something."""
        return progress_in(self.ask("GET", "/metrics", seconds).decode())


def progress_in(metrics: str) -> float:
    lines = (line.rpartition(" ") for line in metrics.splitlines())
    return sum(float(value) for series, _, value in lines if series.partition("{")[0] in PROGRESS)


def check(worker: Worker, seconds: float) -> str:
    """What shows that it is healthy. Raises Unhealthy when nothing did within the time."""
    until = time.monotonic() + seconds
    try:
        before = worker.progress(seconds / 4)
        if worker.answers(seconds / 4):
            return "answers"
        while (left := until - time.monotonic()) > 0:
            if worker.progress(left) > before:
                return "busy, and moving"
            time.sleep(LOOK_AGAIN_SECONDS)
    except TimeoutError:
        pass
    raise Unhealthy(f"no token within {seconds:g} s, and the engine stands still")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.health", description="Asks a worker for one token.")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8001, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="time it has (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(check(Worker(options.host, options.port), options.seconds))
    except Unhealthy as reason:
        print(f"worker: unhealthy: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
