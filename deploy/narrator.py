"""Tells a person how the start goes: one line for each thing that happened. Reads statuses and starts no part."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from deploy.status import PartStatus, StageStatus, Status
from deploy.wishes import Wishes

LINK_SECONDS = 20.0
POLL_SECONDS = 0.1
STAGES_IN_WORDS = {
    "redis": "Redis answers",
    "gateway": "the gateway answers",
    "convert": "the demo model is unpacked",
    "plan": "the worker has planned",
    "import": "vLLM is imported",
    "weights": "the weights are loaded",
    "memory": "the KV cache is laid out",
    "warmup": "the engine is warm",
    "serve": "the engine answers",
}
OPEN_WITHOUT_TLS = (
    "Warning: {host} is reachable from other machines without TLS; passwords and answers travel in the clear.\n"
    "         Give --tls-cert and --tls-key, or put a proxy with TLS in front."
)
REAL_MODEL = (
    "This is a demo model: small, English only, weak on facts. To serve Qwen2.5-1.5B-Instruct, put its directory\n"
    "on this machine and start with:  ./deskmate up --model /path/to/Qwen2.5-1.5B-Instruct"
)


class Narrator:
    """Remembers what it has told; give it every status you see, in order."""

    def __init__(self, wishes: Wishes, say: Callable[[str], None], link: Callable[[], str | None]) -> None:
        self._wishes, self._say, self._link = wishes, say, link
        self._stages: dict[str, StageStatus] = {}
        self._parts: dict[str, PartStatus] = {}
        self._welcomed = self._was_ready = False

    def tell(self, status: Status) -> None:
        for stage in status.stages:
            self._tell_stage(stage)
        for part in status.parts:
            self._tell_part(part)
        gateways = [part for part in status.parts if part.name.startswith("gateway")]
        if not self._welcomed and all(part.state == "ready" for part in gateways):
            self._welcomed = True
            self._welcome(status)
        if status.ready and not self._was_ready:
            self._tell_ready(status)
        self._was_ready = status.ready

    def _tell_stage(self, stage: StageStatus) -> None:
        before = self._stages.get(stage.name)
        self._stages[stage.name] = stage
        if stage.state == "done" and (before is None or before.state != "done"):
            note = f" ({stage.message})" if stage.message else ""
            self._say(f"  {stage.seconds:5.1f} s  {STAGES_IN_WORDS.get(stage.name, stage.name)}{note}")

    def _tell_part(self, part: PartStatus) -> None:
        before = self._parts.get(part.name)
        self._parts[part.name] = part
        if part.name == "engine":
            return  # it lives and dies with the worker, which tells
        if before is not None and part.restarts > before.restarts:
            self._say(f"The {part.name} {part.message}")
        if part.state == "failed" and (before is None or before.state != "failed"):
            self._say(f"The {part.name} cannot run: {part.message}")

    def _welcome(self, status: Status) -> None:
        if self._wishes.is_open_without_tls:
            self._say(OPEN_WITHOUT_TLS.format(host=status.address))
        link = self._link()
        self._say("")
        if link:
            fragment = link.partition("#")[2]
            self._say(f"  Open     {status.address}/#{fragment}")
            self._say("           (once; whoever opens it becomes the administrator)")
        else:
            self._say(f"  Open     {status.address}")
            self._say("           (a fresh sign-in link: ./deskmate user link NAME)")
        self._say("  API key  ./deskmate key create --user NAME")
        self._say("\nThe page works now; a question asked while the model loads waits in line and is answered.")

    def _tell_ready(self, status: Status) -> None:
        self._say(f"\nReady: {status.model or 'everything'} is served at {status.address}")
        if status.demo:
            self._say(REAL_MODEL)


def administrator_link(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str | None:
    """The one-time link for the first administrator; None when there is one already, or the gateway gives none."""
    with suppress(subprocess.TimeoutExpired, json.JSONDecodeError, AttributeError):
        done = subprocess.run(
            list(command),
            env=dict(environment),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LINK_SECONDS,
            check=False,
        )
        return json.loads(done.stdout).get("url") or None
    return None


def follow(read: Callable[[], Status | None], narrator: Narrator, over: Callable[[Status | None], bool]) -> None:
    """Tells every status until `over` says that the last one was enough."""
    while True:
        status = read()
        if status is not None:
            narrator.tell(status)
        if over(status):
            return
        time.sleep(POLL_SECONDS)
