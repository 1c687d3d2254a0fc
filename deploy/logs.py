"""Log files that stay small, and how they are read. Knows lines, not who writes them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CAP_BYTES = 8 * 1024 * 1024
POLL_SECONDS = 0.2


class LogFile:
    """Appends to a file; when it is full, the old half is kept as NAME.1: never more than two caps on the disk."""

    def __init__(self, file: Path, cap_bytes: int = CAP_BYTES) -> None:
        self.file = file
        self._cap_bytes = cap_bytes
        self._stream = file.open("ab", buffering=0)
        file.chmod(0o600)

    def write(self, data: bytes) -> None:
        if self._stream.tell() + len(data) > self._cap_bytes:
            self._stream.close()
            self.file.replace(older(self.file))
            self._stream = self.file.open("ab", buffering=0)
            self.file.chmod(0o600)
        self._stream.write(data)

    def close(self) -> None:
        self._stream.close()


def older(file: Path) -> Path:
    return file.with_name(file.name + ".1")


def tail(file: Path, count: int) -> list[str]:
    """The last lines of a log, those from before its last turn-over included."""
    text = b"".join(one.read_bytes() for one in (older(file), file) if one.exists())
    return text.decode(errors="replace").splitlines()[-count:]


def follow(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """New lines of all files, for ever; a file that turned over is read from its start."""
    offsets = {file: file.stat().st_size if file.exists() else 0 for file in files}
    while True:
        for file in files:
            size = file.stat().st_size if file.exists() else 0
            if size < offsets[file]:
                offsets[file] = 0
            with (file if size else Path(os.devnull)).open("rb") as stream:
                stream.seek(offsets[file])
                whole = stream.read().rpartition(b"\n")
            offsets[file] += len(whole[0]) + len(whole[1])
            yield from ((file, line) for line in whole[0].decode(errors="replace").splitlines())
        time.sleep(POLL_SECONDS)
