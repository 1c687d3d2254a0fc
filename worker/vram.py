"""Memory in use, for Prometheus: a card's over NVML, on CPU what server and engine hold. Knows no metric names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from worker.hardware import memory, nvml


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes now; by process: pid, name, bytes."""

    used_bytes: int
    total_bytes: int
    processes: tuple[tuple[int, str, int], ...]


def host_usage(root_pid: int | None = None) -> Usage:
    """Resident memory of a process and its descendants, against what the machine or container has."""
    root = root_pid or os.getpid()
    found = tuple((pid, process_name(pid), resident_bytes(pid)) for pid in family(root))
    return Usage(sum(size for _, _, size in found), memory()[0], found)


def card_usage(uuid: str) -> Usage | None:
    """Of one card; None when the driver cannot be asked. In a container the processes of others have no name."""
    with nvml() as library:
        if library is None:
            return None
        try:
            handle = library.nvmlDeviceGetHandleByUUID(uuid)
            space = library.nvmlDeviceGetMemoryInfo(handle)
            running = library.nvmlDeviceGetComputeRunningProcesses(handle)
        except library.NVMLError:
            return None
    found = ((one.pid, process_name(one.pid), one.usedGpuMemory or 0) for one in running)
    return Usage(space.used, space.total, tuple(found))


def family(root: int) -> list[int]:
    """The process and all its descendants."""
    parents = {int(path.name): parent_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    members = [root]
    for member in members:  # grows while it is read
        members += [pid for pid, parent in parents.items() if parent == member]
    return members


def parent_of(pid: int) -> int:
    return int(status(pid).get("PPid", "0"))


def process_name(pid: int) -> str:
    return status(pid).get("Name", "unknown")


def resident_bytes(pid: int) -> int:
    return int(status(pid).get("VmRSS", "0 kB").split()[0]) * 1024


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status; empty when the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}
