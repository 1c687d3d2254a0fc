"""What the stack is doing, as one value that is written to a file at every change. Knows no process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deploy.home import read_json, write_json

PartState = Literal["starting", "ready", "restarting", "stopped", "failed", "external"]
StageState = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class PartStatus:
    name: str
    state: PartState
    since: float
    pid: int | None = None
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True)
class StageStatus:
    name: str
    state: StageState = "waiting"
    started_at: float | None = None
    seconds: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Status:
    """The whole stack. `ready` means that a question would be answered now."""

    address: str
    pid: int
    start_ticks: int
    started_at: float
    model: str | None = None
    demo: bool = False
    parts: tuple[PartStatus, ...] = ()
    stages: tuple[StageStatus, ...] = ()

    @property
    def ready(self) -> bool:
        return bool(self.parts) and all(part.state in ("ready", "external") for part in self.parts)

    def part(self, name: str) -> PartStatus:
        return next(part for part in self.parts if part.name == name)

    def stage(self, name: str) -> StageStatus:
        return next(stage for stage in self.stages if stage.name == name)

    def as_json(self) -> dict[str, Any]:
        return {"ready": self.ready, **asdict(self)}


def read_status(file: Path) -> Status | None:
    """The last written status, or None. It may be of a stack that is gone: ask whether its pid still runs."""
    value = read_json(file)
    if value is None:
        return None
    value.pop("ready", None)
    try:
        parts = tuple(PartStatus(**part) for part in value.pop("parts"))
        stages = tuple(StageStatus(**stage) for stage in value.pop("stages"))
        return Status(**value, parts=parts, stages=stages)
    except (KeyError, TypeError):
        return None  # written by another version


class Board:
    """Holds the current status; every change is written to the file and told to one listener."""

    def __init__(self, file: Path, status: Status, told: Callable[[Status], None] = lambda status: None) -> None:
        self._file = file
        self.status = status
        self.told = told
        self._write()

    def part(self, name: str, **changes: Any) -> None:
        """Changes a part; a new state starts its `since` anew."""
        old = self.status.part(name)
        if "state" in changes and changes["state"] != old.state:
            changes["since"] = time.time()
        fresh = replace(old, **changes)
        if fresh != old:
            parts = tuple(fresh if part.name == name else part for part in self.status.parts)
            self.change(parts=parts)

    def begin(self, *names: str) -> None:
        """Stages begin; those that began already (of an earlier try) begin anew."""
        for name in names:
            self._stage(name, state="running", started_at=time.time(), seconds=None, message="")

    def finish(self, *names: str, message: str = "") -> None:
        """Stages are done: those that never began too, in no time."""
        for name in names:
            if self.status.stage(name).state != "done":
                self._close(name, "done", message)

    def fail(self, name: str, message: str) -> None:
        self._close(name, "failed", message)

    def reset(self, *names: str) -> None:
        for name in names:
            self._stage(name, state="waiting", started_at=None, seconds=None, message="")

    def _close(self, name: str, state: StageState, message: str) -> None:
        now = time.time()
        started = self.status.stage(name).started_at or now
        self._stage(name, state=state, started_at=started, seconds=round(now - started, 2), message=message)

    def _stage(self, name: str, **changes: Any) -> None:
        stages = (replace(stage, **changes) if stage.name == name else stage for stage in self.status.stages)
        self.change(stages=tuple(stages))

    def change(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        self._write()
        self.told(self.status)

    def _write(self) -> None:
        write_json(self._file, self.status.as_json())
