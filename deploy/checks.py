"""`./deskmate test`: brings what the tests need and runs every check. Knows commands, not what they check."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
    "iproute2": lambda: shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None,
    "prometheus": lambda: shutil.which("promtool") is not None,
    "prometheus-node-exporter": lambda: shutil.which("prometheus-node-exporter") is not None,
    "fonts-noto-cjk": lambda: any(Path("/usr/share/fonts").rglob("Noto*CJK*")),
    "nodejs": lambda: shutil.which("node") is not None,
}


TRIED_AGAIN = 3  # tests at most: more than that is no bad luck


@dataclass(frozen=True)
class Check:
    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float
    unsteady: Sequence[str] = ()  # tests that failed, and passed when they were run again


def tests_that_failed(root: Path) -> list[str]:
    """As pytest's own cache tells of its last run."""
    told = root / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return sorted(json.loads(told.read_text())) if told.exists() else []


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
    pytest = Check("pytest", (python, "-m", "pytest", *arguments))
    if arguments:
        return [pytest]
    imports = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    web = sorted(str(file.relative_to(root)) for file in (root / "tests" / "web").glob("*.test.mjs"))
    return [
        Check("ruff", (python, "-m", "ruff", "check", ".")),
        Check("format", (python, "-m", "ruff", "format", "--check", ".")),
        Check("mypy", (python, "-m", "mypy")),
        *([Check("imports", (python, "-c", imports))] if has_import_contracts(root) else []),
        *([Check("javascript", ("node", "--test", *web))] if web else []),
        pytest,
    ]


def has_import_contracts(root: Path) -> bool:
    return (root / ".importlinter").exists() or "[tool.importlinter]" in (root / "pyproject.toml").read_text()


def run_checks(root: Path, home: Home, arguments: Sequence[str]) -> int:
    """Runs all of them, also after a failure, and closes with a summary.

    Many of the tests kill, stall and race real processes, and a starved machine can make one of them miss its deadline:
    when all tests were asked for and at most TRIED_AGAIN failed, these run once more, and the summary names them.
    """
    outcomes = []
    for check in checks(root, home, arguments):
        outcome = run_check(root, check)
        if check.name == "pytest" and not arguments and not outcome.passed:
            outcome = tried_again(root, check, outcome)
        outcomes.append(outcome)
    print()
    for outcome in outcomes:
        print(f"{'passed' if outcome.passed else 'FAILED':7} {outcome.name:12} {outcome.seconds:6.1f} s")
        for test in outcome.unsteady:
            print(f"        passed only when it was run again: {test}")
    passed = all(outcome.passed for outcome in outcomes)
    print(f"{'All checks passed' if passed else 'Some checks failed'} in {sum(one.seconds for one in outcomes):.0f} s")
    return 0 if passed else 1


def tried_again(root: Path, check: Check, failed: Outcome) -> Outcome:
    tests = tests_that_failed(root)
    if not 0 < len(tests) <= TRIED_AGAIN:
        return failed
    again = run_check(root, Check("pytest, again", (*check.command, "--last-failed", "--last-failed-no-failures=none")))
    return Outcome(check.name, again.passed, failed.seconds + again.seconds, tests if again.passed else ())


def meant_for_tests(variable: str) -> bool:
    """Settings of an installation are not; whether the tests must find a container engine is."""
    return variable == "DESKMATE_CONTAINERS" or not variable.startswith("DESKMATE_")


def run_check(root: Path, check: Check) -> Outcome:
    print(f"\n== {check.name}", flush=True)
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if meant_for_tests(name)}
    code = subprocess.run(list(check.command), cwd=root, env=environment, check=False).returncode
    return Outcome(check.name, code == 0, time.monotonic() - started)
