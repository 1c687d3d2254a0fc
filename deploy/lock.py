"""Refreshes deploy/locks/*.txt from the .in files (`./deskmate lock`, for developers). Installs nothing."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.indexes import PYTORCH_CPU_INDEX, nothing_found

LOCKS = Path(__file__).parent / "locks"
COMPILE = ("pip", "compile", "--generate-hashes", "--no-header", "--no-annotate", "--python-version", "3.11")


class LockFailed(Exception):
    """A lock could not be resolved; the message holds what the resolver said."""


def refresh(uv: Path, settings: Mapping[str, str]) -> None:
    """Resolves every lock anew with `uv`, whose index settings are `settings`."""
    without_folders = {name: value for name, value in settings.items() if name != "UV_FIND_LINKS"}
    alone = compiled(uv, settings, "alone.in", "--no-deps")
    cpu = compiled_for_cpu(uv, settings)
    cuda = compiled(uv, without_folders, "cuda.in", "--excludes", "cuda.excludes")  # a folder may hold torch for CPU
    write("uv.txt", compiled(uv, settings, "uv.in", "--no-deps"))
    write("cpu.txt", cpu + alone)
    write("cuda.txt", cuda + alone)
    for name in ("gateway", "image"):
        write(f"{name}.txt", compiled(uv, settings, f"{name}.in", "--constraint", "cpu.txt"))
    shared = names(cpu + alone) & names(cuda + alone)
    development = compiled(uv, settings, "dev.in", "--constraint", "cpu.txt")
    write("dev.txt", "".join(entry for entry in entries(development) if name_of(entry) not in shared))


def compiled_for_cpu(uv: Path, settings: Mapping[str, str]) -> str:
    options = ("cpu.in", "--excludes", "cpu.excludes")
    try:
        return compiled(uv, settings, *options)
    except LockFailed as failure:
        if not nothing_found(str(failure)):
            raise
        return compiled(uv, settings, *options, "--index", PYTORCH_CPU_INDEX)


def compiled(uv: Path, settings: Mapping[str, str], source: str, *options: str) -> str:
    command = [str(uv), *COMPILE, source, *options]
    done = subprocess.run(
        command, cwd=LOCKS, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LockFailed(f"cannot resolve deploy/locks/{source}:\n{done.stderr}")
    return done.stdout


def entries(lock: str) -> Iterator[str]:
    """Each requirement with its hashes, as the lines it stands in."""
    return (match.group() for match in re.finditer(r"^\S.*\n(?:[ \t]+.*\n)*", lock, re.MULTILINE))


def name_of(entry: str) -> str:
    return entry.partition("==")[0].strip()


def names(lock: str) -> set[str]:
    return {name_of(entry) for entry in entries(lock)}


def write(name: str, text: str) -> None:
    (LOCKS / name).write_text("# Made by `./deskmate lock` from the .in files beside it; do not edit.\n" + text)
