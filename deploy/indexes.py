"""Where packages come from: gives uv the index settings that pip has. Names one host, PyTorch's own, and asks none."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Mapping
from pathlib import Path

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NOTHING_FOUND = (
    "no matching distribution",
    "there is no version of",
    "was not found in the package registry",
    "has no wheels with a matching",
)


def uv_settings(python: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """UV_* variables that make uv look where pip looks; those the user has set stay as they are."""
    listing = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], env=dict(environment), capture_output=True, text=True, check=False
    )
    settings = translated(pip_settings(listing.stdout))
    return {name: value for name, value in settings.items() if name not in environment}


def pip_settings(listing: str) -> dict[str, str]:
    """`pip config list` as key → value. Later sections win as in pip: global, then install, then the environment."""
    found: dict[tuple[int, str], str] = {}
    for line in listing.splitlines():
        where, _, literal = line.partition("=")
        section, _, key = where.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section)
        if rank is not None and literal:
            found[rank, key] = str(ast.literal_eval(literal))
    return {key: value for (_, key), value in sorted(found.items())}


def translated(pip: Mapping[str, str]) -> dict[str, str]:
    """pip's settings in uv's words. pip separates by blanks; uv's folders are separated by commas."""
    uv = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_NO_INDEX": "1" if pip.get("no-index", "") in ("1", "true", "yes") else "",
        "UV_HTTP_TIMEOUT": pip.get("timeout", "") or pip.get("default-timeout", ""),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # pip's own rule; the hashes make it safe
    }
    return {name: value for name, value in uv.items() if value}


def nothing_found(output: str) -> bool:
    """True when an installer said that an index lacks a version (not: it cannot be reached, a hash differs)."""
    return any(phrase in output.lower() for phrase in NOTHING_FOUND)
