"""Questions to /proc and the one way a group of processes is ended. Knows pids, not what runs under them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat. A pid is used again one day; pid and start together are not, until the next boot."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    start_ticks: int

    @property
    def running(self) -> bool:
        return self.state not in "ZX"


def process(pid: int) -> Process | None:
    """The process, or None when there is none (or no longer)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Process(pid, name, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def processes() -> Iterator[Process]:
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := process(int(entry.name))):
            yield found


def same(pid: int, start_ticks: int) -> bool:
    """True while the very process that was recorded still runs."""
    found = process(pid)
    return found is not None and found.running and found.start_ticks == start_ticks


def is_in_session(pid: int, session: int) -> bool:
    found = process(pid)
    return found is not None and found.running and found.session == session


def members(session: int) -> list[Process]:
    """Who still runs in the session that a part was started in."""
    return [found for found in processes() if found.session == session and found.running]


def descendants(pid: int) -> list[Process]:
    everybody = list(processes())
    family, found = {pid}, []
    while fresh := [one for one in everybody if one.parent in family and one.pid not in family]:
        family.update(one.pid for one in fresh)
        found.extend(fresh)
    return found


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Record:
    """What is written down about a started part, so that another process can end it by identity, never by name."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    folder: str

    def left_over(self) -> list[Process]:
        """What of the part's session still runs: all of it, or what outlived its leader (an engine core does)."""
        if self.boot_id != boot_id():
            return []
        leader = process(self.pid)
        if leader is not None and leader.start_ticks != self.start_ticks:
            return []
        alive = [one for one in members(self.pid) if one.start_ticks >= self.start_ticks]
        return alive if leader is not None else [one for one in alive if works_in(one.pid, self.folder)]


def works_in(pid: int, folder: str) -> bool:
    try:
        return str((PROC / str(pid) / "cwd").readlink()) == folder
    except OSError:
        return False


def end(record: Record, patience_seconds: float) -> None:
    """Ends what is left of a part: TERM, twice (an engine that loads swallows the first), then KILL."""
    for sign, seconds in (
        (signal.SIGTERM, patience_seconds),
        (signal.SIGTERM, patience_seconds),
        (signal.SIGKILL, 5.0),
    ):
        for one in record.left_over():
            with suppress(ProcessLookupError):
                os.kill(one.pid, sign)
        deadline = time.monotonic() + seconds
        while record.left_over() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not record.left_over():
            return


def port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return True  # not ours to judge; the gateway says what it may not do
        except OSError:
            return False
    return True


def listener(port: int) -> Process | None:
    """Who listens on the port, where we may see it."""
    sockets = {f"socket:[{inode}]" for inode in listening_inodes(port)}
    for one in processes():
        with suppress(OSError):
            for entry in (PROC / str(one.pid) / "fd").iterdir():
                with suppress(OSError):
                    if str(entry.readlink()) in sockets:
                        return one
    return None


def listening_inodes(port: int) -> Iterator[str]:
    for table in ("net/tcp", "net/tcp6"):
        with suppress(OSError):
            for line in (PROC / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
