"""What is asked of a running stack from another terminal: down, status, logs, people, keys. Installs nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from deploy.errors import NotRunning, Refusal, UsageError
from deploy.home import Home, read_json
from deploy.local import end_left_over, stack_file
from deploy.logs import follow, tail
from deploy.narrator import REAL_MODEL
from deploy.orders import ask
from deploy.processes import same
from deploy.status import Status, read_status
from deploy.wishes import Sockets, child_environment

PARTS_WITH_LOGS = ("redis", "gateway", "worker")
DOWN_SECONDS = 60.0
HURRY_SECONDS = 15.0
POLL_SECONDS = 0.05


def running(home: Home) -> Status | None:
    """The status of the stack that runs now; None where its supervisor is gone."""
    status = read_status(home.status_file)
    return status if status and same(status.pid, status.start_ticks) else None


def need_running(home: Home) -> Status:
    status = running(home)
    if status is None:
        raise NotRunning(f"Deskmate does not run for {home.folder}; `./deskmate up` starts it")
    return status


def down(home: Home) -> None:
    """Stops the stack in its order and waits; a killed supervisor's parts are ended too."""
    status = running(home)
    if status is None:
        end_left_over(home)
        raise NotRunning(f"Deskmate does not run for {home.folder}; nothing to stop")
    for seconds in (DOWN_SECONDS, HURRY_SECONDS):
        os.kill(status.pid, signal.SIGTERM)
        if gone(status, seconds):
            return
    raise Refusal(f"Deskmate (pid {status.pid}) does not stop; its logs are in {home.logs}")


def gone(status: Status, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while same(status.pid, status.start_ticks):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def restart(home: Home, part: str) -> None:
    """Returns once the part runs anew and answers."""
    need_running(home)
    ask(Sockets(Path(read_json(stack_file(home))["sockets"])).orders, part)
    print(f"The {part} was restarted.")


def show_status(home: Home, as_json: bool) -> None:
    status = running(home)
    if as_json:
        nothing: dict[str, object] = {"ready": False, "address": None, "model": None, "parts": []}
        print(json.dumps(status.as_json() if status else nothing, ensure_ascii=False, indent=1))
        if status is None:
            raise NotRunning("Deskmate does not run")
        return
    status = need_running(home)
    print(f"{'ready' if status.ready else 'not ready'}  {status.address}  {status.model or ''}")
    for part in status.parts:
        since, pid = time.strftime("%H:%M:%S", time.localtime(part.since)), part.pid or "-"
        print(f"  {part.name:10} {part.state:10} pid {pid:<8} since {since}  restarts {part.restarts}  {part.message}")
    for stage in status.stages:
        if stage.state in ("running", "failed"):
            print(f"  stage {stage.name}: {stage.state} {stage.message}")
    if status.demo:
        print(REAL_MODEL)


def show_logs(home: Home, part: str | None, count: int, keep_on: bool) -> None:
    if part is not None and part not in (*PARTS_WITH_LOGS, "engine"):
        raise UsageError(f"no part {part!r}; there are {', '.join(PARTS_WITH_LOGS)} (the engine writes to worker)")
    chosen = PARTS_WITH_LOGS if part is None else ("worker" if part == "engine" else part,)
    files = [file for name in chosen for file in logs_of(home, name)]
    if not files:
        raise NotRunning(f"no logs in {home.logs}: Deskmate has not run for this data folder")
    several = len(files) > 1
    for file in files:
        for line in tail(file, count):
            print(prefixed(file, line, several))
    if keep_on:
        for file, line in follow(files):
            print(prefixed(file, line, several), flush=True)


def logs_of(home: Home, part: str) -> list[Path]:
    """`gateway` has several where several run."""
    return sorted([*home.logs.glob(f"{part}.log"), *home.logs.glob(f"{part}-*.log")])


def prefixed(file: Path, line: str, several: bool) -> str:
    return f"{file.stem:10} {line}" if several else line


def gateway_command(home: Home, words: Sequence[str]) -> list[str]:
    return [str(home.python), "-m", "gateway", *words]


def gateway_environment(home: Home, root: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the running stack's gateway: the same settings, so the same Redis and secret."""
    stack = read_json(stack_file(home)) or {"settings": {}}
    return {**child_environment(root, home, given), **stack["settings"]}


def become_gateway_command(home: Home, root: Path, words: Sequence[str]) -> NoReturn:
    """`user …` and `key …` are the gateway's own commands, run with the running stack's settings."""
    need_running(home)
    os.chdir(root)
    command = gateway_command(home, words)
    os.execve(command[0], command, gateway_environment(home, root, os.environ))
