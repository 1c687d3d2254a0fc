"""A checkout of its own, as an administrator has one: copied, cloned, an environment lent to it. Starts nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.checkout import files_of
from deploy.home import Home
from deploy.install import Environment, runtime_lock
from tests.docs.commands import ROOT

SOMEBODY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")


def need_environment() -> None:
    if not Environment(Home(Path(sys.prefix).parent), print).holds(runtime_lock()):
        pytest.skip("needs the environment of `./deskmate test`")


def copied(folder: Path) -> Path:
    for file in files_of(ROOT, ()):
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return folder


def published(folder: Path) -> Path:
    """A repository with these files as its only commit."""
    git(copied(folder), "init", "--quiet")
    commit(folder, "The first release")
    return folder


def commit(repository: Path, text: str) -> None:
    git(repository, "add", "--all")
    git(repository, *SOMEBODY, "commit", "--quiet", "--message", text)


def cloned(origin: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(origin), str(folder)], check=True)
    return folder


def lend_environment(checkout: Path) -> None:
    """The one that runs the tests: nothing is installed twice."""
    home = Home(checkout / "var")
    home.create()
    if not home.env.exists():
        home.env.symlink_to(sys.prefix)


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True)
