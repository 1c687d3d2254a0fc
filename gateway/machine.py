"""How much of the machine is used: memory, open files, the disk of the data folder, each from 0 to 1.

Reads /proc and the control groups. Knows no threshold and nobody who asks.
"""

import errno
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LAST_BYTES = 10 << 30  # of memory, or of a disk, only the last so many count: 5 % of a terabyte is no shortage
MOST_FILES = 65_536


def raise_file_limit() -> None:
    """Take what we may have: a login's 1,024 files are fewer than one busy gateway's connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def file_limit() -> float:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if soft == resource.RLIM_INFINITY else soft


@dataclass(frozen=True, slots=True)
class Machine:
    """What can't be read is not told. Reads files only; a hung disk may make it wait."""

    data: Path | None  # the folder whose disk is looked at
    proc: Path = Path("/proc")
    groups: Path = Path("/sys/fs/cgroup")

    def used(self) -> Mapping[str, float]:
        shares = {"memory": self.memory(), "files": self.files(), "disk": self.disk()}
        return {name: share for name, share in shares.items() if share is not None}

    def memory(self) -> float | None:
        """Of the machine, or of the control group that has less left."""
        try:
            limits = [self._machine(), *self._control_groups()]
        except (OSError, ValueError, KeyError):
            return None
        return max(_share(left, total) for left, total in limits)

    def files(self) -> float | None:
        try:
            return sum(1 for _ in (self.proc / "self/fd").iterdir()) / file_limit()
        except OSError as fault:  # to count them takes one
            return 1.0 if fault.errno == errno.EMFILE else None

    def disk(self) -> float | None:
        try:
            found = os.statvfs(self.data) if self.data else None
        except OSError:
            return None
        return _share(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize) if found else None

    def _machine(self) -> tuple[int, int]:
        lines = (line.split() for line in (self.proc / "meminfo").read_text().splitlines())
        kilobytes = {words[0]: int(words[1]) for words in lines}
        return kilobytes["MemAvailable:"] << 10, kilobytes["MemTotal:"] << 10

    def _control_groups(self) -> Iterator[tuple[int, int]]:
        """Ours and those above it, version 2 or 1; files that the kernel gives up when it must are not counted."""
        for line in (self.proc / "self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers:
                yield from _group(self.groups, name, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                yield from _group(self.groups / "memory", name, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _group(root: Path, name: str, limit_file: str, usage_file: str) -> Iterator[tuple[int, int]]:
    folder = root / name.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            return
        limit, usage = _number(group / limit_file), _number(group / usage_file)
        if limit and usage is not None:
            yield limit - usage + _given_up(group / "memory.stat"), limit


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _given_up(path: Path) -> int:
    try:
        lines = (line.split() for line in path.read_text().splitlines())
        return next(int(words[1]) for words in lines if words[0] in ("inactive_file", "total_inactive_file"))
    except (OSError, StopIteration):
        return 0


def _share(left: int, total: int) -> float:
    return min(1.0, max(0.0, 1 - left / max(1, min(total, LAST_BYTES))))
