"""Prepares docker-compose.yml for this machine: secrets, settings, wheels. Starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import Refusal
from deploy.home import Home

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    @classmethod
    def of(cls, options: argparse.Namespace) -> Wishes:
        return cls()


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def prepare(root: Path, home: Home, wishes: Wishes, say: Say) -> None:
    raise Refusal("compose-init is not there yet")
