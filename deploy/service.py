"""systemd units for this installation. Prints; installs nothing."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import Refusal
from deploy.home import Home


def units(root: Path, home: Home, user: str | None) -> str:
    raise Refusal("service is not there yet")
