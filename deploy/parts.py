"""One supervised part: started in its own session, restarted when it dies, ended whole. Knows no part by name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.logs import LogFile
from deploy.processes import Record, boot_id, members, process
from deploy.status import Board

QUICK_DEATH_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 2.0
POLL_SECONDS = 0.05
TRIES_BEFORE_FIRST_READY = 3


@dataclass(frozen=True)
class Command:
    """What to run. `folder` is where it runs; by it a survivor of a killed supervisor is known again."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    descriptors: Sequence[int] = ()  # open files that it inherits under their numbers


class Child:
    """One running process and its session. `ended` gives its exit code once nothing of the session runs any more."""

    def __init__(self, name: str, command: Command, log: LogFile, hear: Callable[[str], None]) -> None:
        self._log, self._hear, self._half_line = log, hear, b""
        self.last_lines: deque[str] = deque(maxlen=20)
        self._output, output = os.pipe()
        try:
            self._popen = subprocess.Popen(
                list(command.argv),
                cwd=command.folder,
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=tuple(command.descriptors),
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(output)
        self.pid = self._popen.pid
        born = process(self.pid)
        ticks = born.start_ticks if born else 0
        self.record = Record(name, self.pid, ticks, boot_id(), str(command.folder.resolve()))
        self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._dead = asyncio.Event()
        self._pidfd = os.pidfd_open(self.pid)
        os.set_blocking(self._output, False)
        loop.add_reader(self._pidfd, self._on_death)
        loop.add_reader(self._output, self._on_output)

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._kill_session()  # before wait(): until then nobody else can have this pid
        self._popen.wait()
        self._dead.set()

    def _kill_session(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _on_output(self) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._output)
            os.close(self._output)
            return
        self._log.write(data)
        *lines, self._half_line = (self._half_line + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            self._hear(text)

    def last_words(self) -> str:
        return next((line for line in reversed(self.last_lines) if line.strip()), "")

    async def ended(self) -> int:
        await self._dead.wait()
        await until(self._is_alone)
        await asyncio.sleep(0)  # the last lines are read in this turn of the loop
        return self._popen.returncode

    async def _is_alone(self) -> bool:
        return not members(self.pid)

    async def end(self, patience_seconds: Sequence[float], hurry: asyncio.Event) -> None:
        """TERM and wait, once for each patience, then KILL everything. `hurry` cuts every wait short."""
        for seconds in patience_seconds:
            if self._dead.is_set() or hurry.is_set():
                break
            os.kill(self.pid, signal.SIGTERM)  # not yet waited for, so the pid is still its own
            await first_of(self.ended(), hurry.wait(), timeout_seconds=seconds)
        if not self._dead.is_set():
            self._kill_session()
        await self.ended()


async def until(condition: Callable[[], Awaitable[bool]], every_seconds: float = POLL_SECONDS) -> None:
    """Waits for what sends no event: another process's answer."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(every_seconds)


async def first_of(*waits: Awaitable[object], timeout_seconds: float | None = None) -> int | None:
    """Index of the wait that came first, None after the time. The others are cancelled and gone when it returns."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        return next((index for index, task in enumerate(tasks) if task.done()), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Backoff:
    """How long to wait before a restart: not at all after a longer life or the first quick death, then longer."""

    quick_deaths: int = 0

    def delay_seconds(self, ready_seconds: float | None) -> float:
        """`ready_seconds`: how long the part had been ready when it died; None when it never was."""
        if ready_seconds is not None and ready_seconds > QUICK_DEATH_SECONDS:
            self.quick_deaths = 0
            return 0.0
        self.quick_deaths += 1
        if self.quick_deaths == 1:
            return 0.0
        return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (self.quick_deaths - 2))


@dataclass(frozen=True)
class Part:
    """How a part is run. Nothing here changes; what happens to it is on the board.

    `is_ready` may be asked at any time and must not raise. `final_codes`: exit codes after which it is not tried again.
    """

    name: str
    command: Callable[[], Command]
    log: LogFile
    is_ready: Callable[[], Awaitable[bool]]
    patience_seconds: Sequence[float]
    hear: Callable[[str], None] = lambda line: None
    on_start: Callable[[Child], None] = lambda child: None
    on_death: Callable[[], None] = lambda: None
    final_codes: frozenset[int] = frozenset()
    tries: int = TRIES_BEFORE_FIRST_READY


@dataclass
class Keeper:
    """Keeps one part running until it is told to end it."""

    part: Part
    board: Board
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int = 0
    _children: list[Child] = field(default_factory=list)  # two while one takes over from the other
    _takes_over: bool = False
    _task: asyncio.Task[None] | None = None
    _ready_since: float | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def until_ready(self) -> bool:
        """True once it is ready, False once it is given up."""
        return await first_of(self.ready.wait(), self.failed.wait()) == 0

    async def end(self, hurry: asyncio.Event) -> None:
        """Ends the part and keeps it ended. Safe at any moment, also before `start` or while it is being restarted."""
        await self._let_go()
        await self._end_all(list(self._children), self.part.patience_seconds, hurry)
        if not self.failed.is_set():
            self.board.part(self.part.name, state="stopped", pid=None)

    async def replace(self, hurry: asyncio.Event) -> bool:
        """Starts a successor beside the child; once that is ready, the child ends. False when it does not get ready:
        then it is gone, and the child goes on."""
        await self._let_go()
        before = list(self._children)
        self._takes_over = not self._takes_over
        try:
            successor = self._born()
        except OSError:
            successor = None
        if successor is None or await first_of(successor.ended(), until(self.part.is_ready)) != 1:
            self._children = before
            self._task = asyncio.create_task(self._keep(before[0] if before else None))
            return False
        self._task = asyncio.create_task(self._keep(successor))
        self._show_ready(pid=successor.pid)
        await self._end_all(before, self.part.patience_seconds, hurry)
        return True

    async def restart(self, patience_seconds: Sequence[float], hurry: asyncio.Event) -> bool:
        """Ends the child, and returns once its successor is ready. False when that is given up."""
        before = self.board.status.part(self.part.name).pid
        for child in list(self._children):
            await child.end(patience_seconds, hurry)  # whoever keeps it starts the next
        await until(lambda: self._is_settled_after(before))
        return not self.failed.is_set()

    async def _is_settled_after(self, pid: int | None) -> bool:
        part = self.board.status.part(self.part.name)
        return self.failed.is_set() or (part.state == "ready" and part.pid != pid)

    async def _let_go(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _end_all(
        self, children: Sequence[Child], patience_seconds: Sequence[float], hurry: asyncio.Event
    ) -> None:
        await asyncio.gather(*(child.end(patience_seconds, hurry) for child in children))
        self._children = [child for child in self._children if child not in children]

    async def _keep(self, child: Child | None = None) -> None:
        """Life after life, the first of them that of `child` if it runs already."""
        backoff = Backoff()
        deaths = 0
        while True:
            code, last_line = await self._live(child)
            child = None
            deaths += 1
            never_ready = not self.ready.is_set()
            if code in self.part.final_codes or (never_ready and deaths >= self.part.tries):
                self._give_up(code, last_line)
                return
            lived = None if self._ready_since is None else time.monotonic() - self._ready_since
            await self._pause(backoff.delay_seconds(lived), code, last_line)

    async def _live(self, child: Child | None) -> tuple[int, str]:
        """One life: from the start to the death. Returns the exit code and the last line it wrote."""
        if child is None:
            self._ready_since = None
            try:
                child = self._born()
            except OSError as error:
                return 1, f"cannot be started: {error}"
            self.board.part(self.part.name, state="starting", pid=child.pid)
            if await first_of(child.ended(), until(self.part.is_ready)) == 1:
                self._show_ready()
        code = await child.ended()
        self._children.remove(child)
        self.part.on_death()
        return code, child.last_words()

    def _born(self) -> Child:
        """Recorded under a name of its own beside the one it takes over from: both are known until the next time."""
        name = self.part.name + ("+" if self._takes_over else "")
        child = Child(name, self.part.command(), self.part.log, self.part.hear)
        self._children.append(child)
        self.part.on_start(child)
        return child

    def _show_ready(self, **changes: int) -> None:
        self._ready_since = time.monotonic()
        self.board.part(self.part.name, state="ready", **changes)  # the message of the last death stays to be read
        self.ready.set()

    async def _pause(self, seconds: float, code: int, last_line: str) -> None:
        restarts = self.board.status.part(self.part.name).restarts + 1
        when = f"in {seconds:g} s" if seconds else "at once"
        message = f"{ending(code)}; restarted {when}" + (f" (last words: {last_line})" if last_line else "")
        self.board.part(self.part.name, state="restarting", pid=None, restarts=restarts, message=message)
        await asyncio.sleep(seconds)

    def _give_up(self, code: int, last_line: str) -> None:
        self.exit_code = code if code in self.part.final_codes else 1
        message = last_line or ending(code)
        self.board.part(self.part.name, state="failed", pid=None, message=message)
        self.failed.set()


def ending(code: int) -> str:
    """An exit code in words."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
