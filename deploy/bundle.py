"""One file that installs Deskmate where there is no network, and its unpacking. Knows nothing of what runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.errors import Refusal
from deploy.home import Home

Say = Callable[[str], None]


def make(root: Path, home: Home, accelerator: str | None, model: Path | None, output: Path, say: Say) -> None:
    raise Refusal("bundle is not there yet")


def unpack(file: Path, home: Home, say: Say) -> None:
    raise Refusal("bundle is not there yet")
