"""`./deskmate backup` and `restore`: brings what they need, runs the gateway's own. Knows no key of Redis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.errors import Refusal
from deploy.home import Home

Say = Callable[[str], None]


def backup(root: Path, home: Home, file: Path, say: Say) -> None:
    raise Refusal("backup is not there yet")


def restore(root: Path, home: Home, file: Path, say: Say) -> None:
    raise Refusal("restore is not there yet")
