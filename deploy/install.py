"""Makes the environment once: a venv filled from a hash-locked list. Knows nothing of what runs in it.

The order is what makes an interrupted call repair itself: `incomplete` is written first and removed last, and an
environment with that file, or without a stamp, is made anew (what was downloaded is in the cache already).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import InstallFailed
from deploy.home import Home, read_json, write_json
from deploy.indexes import PYTORCH_CPU_INDEX, nothing_found, uv_settings

LOCKS = Path(__file__).parent / "locks"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Lock:
    """One hash-locked list of packages and the name its stamp goes by."""

    name: str
    file: Path

    def stamp(self) -> str:
        """Changes with the list, Python's minor version or the machine's kind: then the environment is made anew."""
        version = ".".join(platform.python_version_tuple()[:2])
        text = "\0".join((self.name, version, platform.machine(), self.file.read_text()))
        return hashlib.sha256(text.encode()).hexdigest()


def accelerator() -> str:
    """`cuda` where the NVIDIA driver is, else `cpu`."""
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    return "cuda" if driver else "cpu"


def runtime_lock() -> Lock:
    kind = accelerator()
    return Lock(kind, LOCKS / f"{kind}.txt")


def development_lock() -> Lock:
    return Lock("dev", LOCKS / "dev.txt")


class Environment:
    """The venv of one data folder. `ensure` is the only way it changes."""

    def __init__(self, home: Home, say: Say, uv_lock: Path = LOCKS / "uv.txt", wheels: Path | None = None) -> None:
        """With a folder of `wheels` they are all there is: no index is asked."""
        self._home = home
        self._say = say
        self._uv_lock = uv_lock
        self._wheels = wheels
        self._stamps = home.env / "deskmate-stamps.json"
        self._incomplete = home.env / "deskmate-incomplete"
        self._held: tuple[int, ...] = ()

    def holds(self, lock: Lock) -> bool:
        """True when this very lock is installed whole. Asks no index."""
        stamps = read_json(self._stamps) or {}
        whole = self._home.python.exists() and not self._incomplete.exists()
        return whole and stamps.get(lock.name) == lock.stamp()

    def ensure(self, base: Lock, *more: Lock) -> None:
        """Installs what is missing, base first. Raises InstallFailed; when it returns, every lock is there whole."""
        if all(self.holds(lock) for lock in (base, *more)):
            return
        self._home.create()
        with self._alone():
            if not self.holds(base):
                self._make(base)
            for lock in more:
                if not self.holds(lock):
                    self._add(lock)

    def _make(self, lock: Lock) -> None:
        started = time.monotonic()
        self._say(f"Making the environment in {self._home.env} ({lock.name}, Python {platform.python_version()})")
        remove(self._home.env)
        self._home.env.mkdir(parents=True, exist_ok=True)
        self._incomplete.touch()
        self._run([sys.executable, "-m", "venv", str(self._home.env)], "cannot make a virtual environment")
        write_json(self._stamps, {})
        self._fill(lock)
        self._say(f"Environment ready after {time.monotonic() - started:.0f} s")

    def _add(self, lock: Lock) -> None:
        self._say(f"Installing the {lock.name} packages")
        self._incomplete.touch()
        self._fill(lock)

    def _fill(self, lock: Lock) -> None:
        self._install(lock)
        write_json(self._stamps, {**(read_json(self._stamps) or {}), lock.name: lock.stamp()})
        self._incomplete.unlink()

    def _install(self, lock: Lock) -> None:
        """With uv, which takes seconds, else with pip. PyTorch's own index only when the others lack a version."""
        install = self._uv_install if self._has_uv() else self._pip_install
        done = install(lock.file, ())
        if done.code and not self._wheels and lock.name == "cpu" and nothing_found(done.output):
            self._say("The configured package index has no CPU build of PyTorch; asking PyTorch's own.")
            done = install(lock.file, ("--extra-index-url", PYTORCH_CPU_INDEX))
        if done.code:
            raise InstallFailed(explanation(lock, done.output, self._wheels))

    def _has_uv(self) -> bool:
        if not (self._home.env / "bin" / "uv").exists():
            done = self._pip_install(self._uv_lock, ())
            if done.code:
                self._say(f"uv cannot be installed here ({last_line(done.output)}); pip does the same in minutes.")
                return False
        return True

    def _uv_install(self, lock: Path, options: tuple[str, ...]) -> Done:
        command = [str(self._home.env / "bin" / "uv"), "pip", "install", "--python", str(self._home.python)]
        asked = {"UV_OFFLINE": "1"} if self._wheels else uv_settings(self._home.python, os.environ)
        return self._run_installer([*command, *locked(lock), *options], asked)

    def _pip_install(self, lock: Path, options: tuple[str, ...]) -> Done:
        command = [str(self._home.python), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
        return self._run_installer([*command, *locked(lock), *options], {})

    def _run_installer(self, command: list[str], settings: Mapping[str, str]) -> Done:
        # As an address, in which a comma or a blank of the path does not divide it.
        only = ["--no-index", "--find-links", self._wheels.as_uri()] if self._wheels else []
        return run([*command, *only], {**self._caches(), **settings}, self._say, self._held)

    def _caches(self) -> dict[str, str]:
        """Downloads lie in the data folder too, so that nothing is left elsewhere."""
        wanted = {"UV_CACHE_DIR": str(self._home.cache / "uv"), "PIP_CACHE_DIR": str(self._home.cache / "pip")}
        return {
            **{name: value for name, value in wanted.items() if name not in os.environ},
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def _run(self, command: list[str], trouble: str) -> None:
        done = run(command, {}, self._say, self._held)
        if done.code:
            raise InstallFailed(f"{trouble}: {last_line(done.output)}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two first calls at once: the second waits and then finds the work done."""
        # The installers inherit the lock: one that outlives a killed call keeps the next call waiting, not clashing.
        with (self._home.run / "install.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("Another call is making the environment; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            self._held = (file.fileno(),)
            yield
            self._held = ()


def remove(env: Path) -> None:
    """Removes the folder; of a link to an environment somewhere else, only the link."""
    if env.is_symlink():
        env.unlink()
    else:
        shutil.rmtree(env, ignore_errors=True)


@dataclass(frozen=True)
class Done:
    code: int
    output: str


def locked(lock: Path) -> list[str]:
    return ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(lock)]


def run(command: list[str], settings: Mapping[str, str], say: Say, keep_open: tuple[int, ...] = ()) -> Done:
    """Runs an installer, tells its progress, and leaves no process behind when interrupted."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=keep_open,
    )
    try:
        return Done(*told(process, say))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def told(process: subprocess.Popen[str], say: Say) -> tuple[int, str]:
    """Reads the installer to its end and passes on what is worth it: its exit code and all it wrote."""
    output: list[str] = []
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            output.append(line)
            if worth_telling(line):
                say("  " + line.strip())
    return process.wait(), "".join(output)


def worth_telling(line: str) -> bool:
    """Downloads and sums; not a line for each of 150 packages."""
    return line.lstrip().startswith(("Downloading", "Downloaded", "Prepared", "Installed", "Resolved"))


def explanation(lock: Lock, output: str, wheels: Path | None) -> str:
    tail = "\n".join("  " + line for line in output.strip().splitlines()[-12:])
    if wheels:
        return f"cannot install the packages of {lock.file.name} from the bundle's wheels in {wheels}:\n{tail}"
    advice = "Check the network or pip's index settings (`pip config list`), then run the same command again."
    if lock.name == "cpu" and platform.python_version_tuple()[:2] != ("3", "11"):
        advice = (
            f"The CPU packages are locked for Python 3.11 and this is {platform.python_version()}: install python3.11."
        )
    return f"cannot install the packages of {lock.file.name}:\n{tail}\n{advice}"


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]
