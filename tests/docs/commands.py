"""The shell commands that the documentation gives, by their name. Knows no test that runs them.

Above each fenced block of `sh` stands `<!-- run: NAME -->`: a test runs that very text. Or, where no test can,
`<!-- elsewhere: REASON -->`.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?:^<!-- (run|elsewhere): ([^\n]+?) -->\n)?^```(?:sh|bash|shell|console)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One block of commands and the mark above it: `run` with a name, `elsewhere` with a reason, or none."""

    page: str
    mark: str
    word: str
    text: str


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(
        Block(page.name, mark, word, text) for page in PAGES for mark, word, text in BLOCK.findall(page.read_text())
    )


def commands(name: str, changes: Mapping[str, object] | None = None) -> str:
    """The block's text, with what must differ on a test's machine put in its place: every change is needed."""
    (text,) = {block.text for block in blocks() if (block.mark, block.word) == ("run", name)}
    for written, here in (changes or {}).items():
        assert written in text, f"the commands {name} no longer say {written!r}"
        text = text.replace(written, shlex.quote(str(here)) if isinstance(here, Path) else str(here))
    return text


def shell(text: str, folder: Path, environment: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """The commands as somebody pastes them, ended by the first that fails. Settings of whoever tests do not count."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("DESKMATE_")}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**given, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
