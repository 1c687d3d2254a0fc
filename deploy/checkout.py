"""Which files are the repository: those that git tracks, else those it would not ignore. Reads none of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Commit:
    """What the checkout is at: whether its files differ from it, and those that git knows nothing of."""

    name: str | None
    changed: bool = False
    untracked: tuple[str, ...] = ()


def commit_of(root: Path) -> Commit:
    name = git(root, "rev-parse", "HEAD")
    if name is None:
        return Commit(None)
    changed = bool(git(root, "status", "--porcelain", "--untracked-files=no"))
    untracked = (git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    return Commit(name.strip(), changed, tuple(filter(None, untracked)))


def files_of(root: Path, without: Iterable[Path]) -> list[Path]:
    """In order. Nothing that lies in one of the `without`; no links, of which the repository has none."""
    tracked = git(root, "ls-files", "-z")
    found = map(root.joinpath, tracked.split("\0")) if tracked is not None else unignored(root)
    kept_out = set(without)
    return sorted(
        file
        for file in found
        if file.is_file() and not file.is_symlink() and kept_out.isdisjoint((file, *file.parents))
    )


def git(root: Path, *words: str) -> str | None:
    """What git says of this very folder; None without git, or where the folder is no repository of its own."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def unignored(root: Path) -> Iterator[Path]:
    file = root / ".gitignore"
    patterns = file.read_text().splitlines() if file.exists() else []
    patterns = [line for line in patterns if line and not line.startswith("#")] + [".git/"]
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if not ignored(here / name, root, patterns, is_folder=True)]
        yield from (here / name for name in names if not ignored(here / name, root, patterns, is_folder=False))


def ignored(path: Path, root: Path, patterns: Iterable[str], *, is_folder: bool) -> bool:
    """By the forms our .gitignore has: a name anywhere, a path from the root (`/a`, `a/b`), folders only (`a/`)."""
    for pattern in patterns:
        bare = pattern.rstrip("/")
        subject = str(path.relative_to(root)) if "/" in bare else path.name
        if (is_folder or not pattern.endswith("/")) and fnmatch(subject, bare.lstrip("/")):
            return True
    return False
