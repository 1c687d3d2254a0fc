"""Wheels of hash-locked lists, brought into one folder with pip. Knows neither bundles nor images nor environments.

What lies in the folder already is known by its hash and not asked for again, so a second call needs no network; a call
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import InstallFailed
from deploy.home import Home
from deploy.indexes import PYTORCH_CPU_INDEX, nothing_found
from deploy.install import LOCKS, Done, run
from deploy.lock import entries

PYTHON = "3.11"  # what the locks are resolved for
BATCH = 16  # what pip saves at once: a failure costs no more than one of them
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
WORTH_TELLING = re.compile(r"Downloading .*\((\d{2,}(\.\d+)? MB|[\d.]+ GB)\)")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """One locked package: its lines in the lock and the hashes one of which its wheel must have."""

    requirement: str
    text: str
    hashes: frozenset[str]


def bundle_locks(accelerator: str) -> list[Path]:
    """What a machine of this kind (`cpu`, `cuda`) needs, and what building its images needs."""
    return [LOCKS / f"{name}.txt" for name in (accelerator, "gateway", "uv", "image")]


def fetch(locks: Iterable[Path], folder: Path, python: Path, say: Say, version: str | None = None) -> list[Path]:
    """The wheel of every locked package, in the folder when it returns. Raises InstallFailed.

    `python` runs pip; the wheels are for its own version, or for `version` ("3.11").
    """
    packages = wanted(locks)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, say):
        there = present(packages, folder, version)
        missing = [package for package in packages if package.requirement not in there]
        for done, batch in batches(missing):
            say(f"Fetching wheels: {len(there) + done} of {len(packages)} are there")
            download(batch, folder, python, say, version)
        there = present(packages, folder, version) if missing else there
    if still := [package.requirement for package in packages if package.requirement not in there]:
        raise InstallFailed(f"pip fetched no wheel for this Python and machine of {', '.join(still)}")
    return sorted(there[package.requirement] for package in packages)


def wanted(locks: Iterable[Path]) -> list[Wanted]:
    """Every package of the locks once; one that several name in the same version has the hashes of all."""
    found: dict[str, Wanted] = {}
    for lock in locks:
        for text in entries(lock.read_text()):
            if not text.startswith("#"):
                requirement = text.split()[0]
                before = found[requirement].hashes if requirement in found else frozenset()
                found[requirement] = Wanted(requirement, text, before | frozenset(HASH.findall(text)))
    return sorted(found.values(), key=lambda package: package.requirement)


def present(packages: Sequence[Wanted], folder: Path, version: str | None) -> dict[str, Path]:
    """Which packages have their wheel in the folder, told by its hash."""
    by_hash = {digest: package.requirement for package in packages for digest in package.hashes}
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.whl")):
        if fits(file.name, version) and (requirement := by_hash.get(digest_of(file))):
            found[requirement] = file
    return found


def fits(wheel: str, version: str | None = None) -> bool:
    """True when the tags in the wheel's name suit the Python version (default: this one) and this machine's kind."""
    python, abi, where = wheel.removesuffix(".whl").split("-")[-3:]
    minor = int((version or ".".join(platform.python_version_tuple()[:2])).partition(".")[2])
    tags = python.split(".")
    generic = any(tag.startswith("py3") and int(tag[3:] or 0) <= minor for tag in tags)
    stable = abi == "abi3" and any(tag.startswith("cp3") and int(tag[3:] or 0) <= minor for tag in tags)
    return (generic or stable or f"cp3{minor}" in tags) and (where == "any" or platform.machine() in where)


def batches(packages: Sequence[Wanted]) -> Iterator[tuple[int, list[Wanted]]]:
    """With the count of those before. A local version (torch's `+cpu`) stands alone: it may need another index."""
    usual = [package for package in packages if "+" not in package.requirement]
    special = [package for package in packages if "+" in package.requirement]
    for start in range(0, len(usual), BATCH):
        yield start, usual[start : start + BATCH]
    for place, package in enumerate(special):
        yield len(usual) + place, [package]


def download(packages: Sequence[Wanted], folder: Path, python: Path, say: Say, version: str | None) -> None:
    """Into a folder beside the others first: what stands in `folder` is always whole."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        fresh = Path(scratch)
        (fresh / "wanted.txt").write_text("".join(package.text for package in packages))
        done = pip_download(fresh, python, say, version, ())
        if done.code and nothing_found(done.output):
            say("The configured package index lacks a wheel; asking PyTorch's own for it.")
            done = pip_download(fresh, python, say, version, ("--extra-index-url", PYTORCH_CPU_INDEX))
        if done.code:
            raise InstallFailed(explanation(packages, folder, done.output))
        for wheel in fresh.glob("*.whl"):
            wheel.replace(folder / wheel.name)


def pip_download(fresh: Path, python: Path, say: Say, version: str | None, options: Sequence[str]) -> Done:
    command = [str(python), "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--progress-bar", "off", "--no-input", "--dest", str(fresh)]
    command += ["--python-version", version] if version else []
    command += ["--requirement", str(fresh / "wanted.txt"), *options]
    return run(command, {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}, lambda line: tell(line, say))


def tell(line: str, say: Say) -> None:
    if WORTH_TELLING.search(line):
        say(line)


def explanation(packages: Sequence[Wanted], folder: Path, output: str) -> str:
    if os.strerror(errno.ENOSPC) in output:
        return f"the disk of {folder} is full; make room (the CPU wheels take 0.7 GB, CUDA's 5 GB) and try again"
    tail = "\n".join("  " + line for line in output.strip().splitlines()[-6:])
    names = ", ".join(package.requirement for package in packages)
    return (
        f"cannot fetch the wheels of {names}:\n{tail}\n"
        "Check the network or pip's index settings (`pip config list`), then run the same command again;\n"
        "what was fetched stays."
    )


@contextmanager
def downloader(home: Home, say: Say) -> Iterator[Path]:
    """A Python with pip: the environment's where there is one, else one made for the purpose and removed."""
    if home.python.exists():
        yield home.python
        return
    home.create()
    with tempfile.TemporaryDirectory(prefix="pip-", dir=home.cache) as scratch:
        made = subprocess.run([sys.executable, "-m", "venv", scratch], capture_output=True, text=True, check=False)
        if made.returncode:
            raise InstallFailed(f"cannot make a virtual environment for pip: {made.stdout}{made.stderr}")
        yield Path(scratch) / "bin" / "python"


@contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """One call a folder; what an interrupted one began is cleared away."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another call is fetching wheels; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob(".fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
