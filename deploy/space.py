"""Room on a disk, and how far a long copy is. Knows sizes, not what is copied."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from deploy.errors import Refusal

STEP_SECONDS = 2.0
Say = Callable[[str], None]


def size_in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def refuse_full_disk(folder: Path, needed: float, purpose: str) -> None:
    """Where less is free than needed: before anything is written."""
    above = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise Refusal(
            f"{purpose} needs {size_in_words(needed)} at {above} and {size_in_words(free)} are free; make room"
        )


class Progress:
    """Tells a share of the whole now and then; nothing of what is quick."""

    def __init__(self, word: str, total: int, say: Say) -> None:
        self._word, self._total, self._say = word, total, say
        self._done, self._told_at = 0, time.monotonic()

    def add(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._told_at > STEP_SECONDS and self._done < self._total:
            self._told_at = time.monotonic()
            self._say(f"  {self._word} {100 * self._done // self._total} % of {size_in_words(self._total)}")
