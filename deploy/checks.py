"""`./deskmate test`: brings what the tests need and runs every check. Knows commands, not what they check."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import InstallFailed
from deploy.home import Home

# Debian package → what shows that it is there.
PACKAGES: dict[str, Callable[[], bool]] = {
    "redis-server": lambda: shutil.which("redis-server") is not None,
    "chromium": lambda: shutil.which("chromium") is not None,
    "curl": lambda: shutil.which("curl") is not None,
    "nginx": lambda: shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is not None,
    "systemd": lambda: shutil.which("systemd-analyze") is not None,
    "openssl": lambda: shutil.which("openssl") is not None,
    "prometheus": lambda: shutil.which("promtool") is not None,
    "fonts-noto-cjk": lambda: any(Path("/usr/share/fonts").rglob("Noto*CJK*")),
    "nodejs": lambda: shutil.which("node") is not None,
}


@dataclass(frozen=True)
class Check:
    """One command. With `beside` it runs while the following ones do, and what it writes is shown after them."""

    name: str
    command: Sequence[str]
    beside: bool = False


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float


def missing_packages() -> list[str]:
    return [package for package, is_there in PACKAGES.items() if not is_there()]


def bring_packages() -> None:
    """Installs missing Debian packages as root, asking first on a terminal; raises InstallFailed where it may not."""
    missing = missing_packages()
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise InstallFailed(f"the tests need more programs; install them and try again:\n  sudo {' '.join(command)}")
    if sys.stdin.isatty() and os.environ.get("CI") != "true" and not agreed(missing):
        raise InstallFailed(f"the tests need: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        if subprocess.run(step, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
            raise InstallFailed(f"`{' '.join(step)}` failed; see above")


def agreed(missing: Sequence[str]) -> bool:
    return input(f"The tests need the Debian packages {' '.join(missing)}. Install them? [y/N] ").lower() in (
        "y",
        "yes",
    )


def checks(root: Path, home: Home, arguments: Sequence[str]) -> list[Check]:
    """Everything; with arguments only pytest, which they are for."""
    python = str(home.python)
    if arguments:
        return [Check("pytest", (python, "-m", "pytest", *arguments))]
    imports = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    web = sorted(str(file.relative_to(root)) for file in (root / "tests" / "web").glob("*.test.mjs"))
    return [
        Check("ruff", (python, "-m", "ruff", "check", ".")),
        Check("format", (python, "-m", "ruff", "format", "--check", ".")),
        Check("mypy", (python, "-m", "mypy")),
        *([Check("imports", (python, "-c", imports))] if has_import_contracts(root) else []),
        *([Check("javascript", ("node", "--test", *web))] if web else []),
        # Most tests wait for other processes: those that load a model and the others run at the same time.
        Check("engines", (python, "-m", "pytest", "-m", "engine"), beside=True),
        Check("pytest", (python, "-m", "pytest", "-m", "not engine")),
    ]


def has_import_contracts(root: Path) -> bool:
    return (root / ".importlinter").exists() or "[tool.importlinter]" in (root / "pyproject.toml").read_text()


def run_checks(root: Path, home: Home, arguments: Sequence[str]) -> int:
    """Runs all of them, also after a failure, and closes with a summary."""
    started = time.monotonic()
    running: list[Running] = []
    try:
        outcomes = []
        for check in checks(root, home, arguments):
            if check.beside:
                running.append(Running(root, check))
            else:
                outcomes.append(run_check(root, check))
        outcomes += [one.outcome() for one in running]
    finally:
        for one in running:
            one.end()
    print()
    for outcome in outcomes:
        print(f"{'passed' if outcome.passed else 'FAILED':7} {outcome.name:12} {outcome.seconds:6.1f} s")
    passed = all(outcome.passed for outcome in outcomes)
    print(f"{'All checks passed' if passed else 'Some checks failed'} in {time.monotonic() - started:.0f} s")
    return 0 if passed else 1


def run_check(root: Path, check: Check) -> Outcome:
    print(f"\n== {check.name}", flush=True)
    started = time.monotonic()
    code = subprocess.run(list(check.command), cwd=root, env=own_environment(), check=False).returncode
    return Outcome(check.name, code == 0, time.monotonic() - started)


class Running:
    """A check that runs beside others."""

    def __init__(self, root: Path, check: Check) -> None:
        self._check, self._started = check, time.monotonic()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            list(check.command), cwd=root, env=own_environment(), stdout=self._output, stderr=self._output
        )
        self._ended = 0.0
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        self._process.wait()
        self._ended = time.monotonic()

    def outcome(self) -> Outcome:
        """Waits for its end and shows what it wrote."""
        self._waiter.join()
        print(f"\n== {self._check.name}", flush=True)
        self._output.seek(0)
        shutil.copyfileobj(self._output, sys.stdout.buffer)
        sys.stdout.flush()
        return Outcome(self._check.name, self._process.returncode == 0, self._ended - self._started)

    def end(self) -> None:
        """Ends it when the others were interrupted; pytest takes INT as Ctrl-C and cleans up."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._waiter.join()
        self._output.close()


def own_environment() -> dict[str, str]:
    """Without the settings of an installation; whether the tests must find a container engine is none."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "DESKMATE_CONTAINERS" or not name.startswith("DESKMATE_")
    }
