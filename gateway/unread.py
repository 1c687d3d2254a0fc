"""Cuts connections whose client takes nothing of what waits for it. Knows no route and no protocol.

Whoever reads slowly stays: what counts is that the client's system acknowledged something since the last look. The
kernel's own TCP_USER_TIMEOUT is no help here; it also cuts readers whose window opens by less than it wants to send.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

_INFO_BYTES = 128
_ACKNOWLEDGED_AT = 120  # tcpi_bytes_acked, 64 bits, in Linux' struct tcp_info
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # else the kernel keeps what is unsent, and offers it, for minutes


class _Taken(NamedTuple):
    bytes_acked: int
    since: float  # seconds; when it was first seen to be so many


class Unread:
    """Looks now and then. Nothing is done for each write, and little for a connection with nothing to send."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._taken: dict[asyncio.Transport, _Taken] = {}

    def look(self, transports: Iterable[asyncio.Transport], now: float) -> None:
        """Cut those that had bytes to send, of which none was taken, for longer than the patience."""
        before, self._taken = self._taken, {}
        for transport in transports:
            if transport.get_write_buffer_size():
                acked = _bytes_acked(transport)
                taken = before.get(transport)
                if taken is None or taken.bytes_acked != acked:
                    taken = _Taken(acked, now)
                if now - taken.since > self._patience_seconds:
                    _cut(transport)
                else:
                    self._taken[transport] = taken


def _cut(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    transport.abort()  # to close would wait until all is sent


def _bytes_acked(transport: asyncio.Transport) -> int:
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return int(struct.unpack_from("=Q", info, _ACKNOWLEDGED_AT)[0])
