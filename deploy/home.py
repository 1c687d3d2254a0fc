"""The data folder: where everything of one installation lies. Knows paths and permissions, not what the files mean."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOCKET_FOLDER_LIMIT_BYTES = 80  # a socket's path ends at 107 bytes; the longest name in the folder has 15


@dataclass(frozen=True)
class Home:
    """The data folder (`DESKMATE_HOME`, else ./var of the checkout), readable by its owner only."""

    folder: Path

    @property
    def env(self) -> Path:
        return self.folder / "env"

    @property
    def python(self) -> Path:
        return self.env / "bin" / "python"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def redis(self) -> Path:
        return self.folder / "redis"

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def demo_model(self) -> Path:
        return self.folder / "models" / "SmolLM2-135M-Instruct"

    @property
    def status_file(self) -> Path:
        return self.run / "status.json"

    @property
    def metrics(self) -> Path:
        """What several gateways have counted; of one run."""
        return self.run / "metrics"

    @property
    def plan_file(self) -> Path:
        return self.run / "plan.json"

    def create(self) -> None:
        """Makes the folder and its parts, 0700 each; a folder that exists is closed to others too."""
        folders = (self.folder, self.logs, self.run, self.cache, self.redis, self.secrets, self.demo_model.parent)
        for folder in folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)


def home_of(root: Path, environment: dict[str, str]) -> Home:
    """The data folder that this call means: relative ones count from where the person stands."""
    chosen = environment.get("DESKMATE_HOME", "")
    return Home(Path(chosen).expanduser().absolute() if chosen else root / "var")


def secret(file: Path) -> str:
    """A random secret that is made once and kept in a file only its owner can read."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(48))
    return file.read_text().strip()


def write_private(file: Path, text: str) -> None:
    """Replaces the file at once, 0600: a reader sees the old text or the new one, never half of it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
    fresh.replace(file)


def write_json(file: Path, value: object) -> None:
    write_private(file, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(file: Path) -> Any:
    """The file's value, or None where there is none."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def socket_folder(environment: dict[str, str]) -> Path:
    """A new private folder with a short path, for sockets: a deep checkout's own path would be too long for them."""
    for base in (environment.get("XDG_RUNTIME_DIR", ""), "/tmp"):
        if base and len(os.fsencode(base)) <= SOCKET_FOLDER_LIMIT_BYTES and os.access(base, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="deskmate-", dir=base))
    raise OSError("no place for sockets: neither XDG_RUNTIME_DIR nor /tmp can be written; make /tmp writable")


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
