"""Asks a local server whether it answers. Knows a status line and a body, no more of HTTP."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_SECONDS = 2.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a server listens: a Unix socket, or a host and port."""

    socket: Path | None = None
    host: str = ""
    port: int = 0
    tls: bool = False


def place_of(url: str) -> Place:
    """`unix:/path` or `http(s)://host:port`; raises ValueError for anything else."""
    if url.startswith("unix:"):
        return Place(socket=Path(url.removeprefix("unix:")))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is neither unix:/path nor http://host:port")
    tls = parts.scheme == "https"
    return Place(host=parts.hostname, port=parts.port or (443 if tls else 80), tls=tls)


async def answers(place: Place, path: str) -> bool:
    """True when GET `path` is answered with 200."""
    return await body(place, path) is not None


async def body(place: Place, path: str) -> bytes | None:
    """What GET `path` answers; None when that is not a 200, or nothing. Without a stated length: empty."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await connect(place)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = LENGTH.search(head)  # a server may leave the connection open: only so much is waited for
                answer = await reader.readexactly(int(length[1])) if length else b""
                return answer if head.split()[1:2] == [b"200"] else None
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None


async def connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if place.socket is not None:
        return await asyncio.open_unix_connection(str(place.socket))
    return await asyncio.open_connection(place.host, place.port, ssl=unverified() if place.tls else None)


def unverified() -> ssl.SSLContext:
    """For our own gateway on loopback, whose certificate names another host."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
