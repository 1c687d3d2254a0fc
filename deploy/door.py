"""The listening sockets: opened once by the supervisor and handed to every gateway. Knows nothing of what is served.

A connection that comes while no gateway takes it waits in the kernel's queue: a restart refuses nobody.
"""

from __future__ import annotations

import errno
import socket

from deploy.errors import PortInUse
from deploy.processes import listener

BACKLOG = 2048
SEND_BUFFER_BYTES = 128 << 10  # a reader that stalls holds this much of the kernel's memory, not megabytes


def opened(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`. Raises PortInUse, naming who listens there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_opened(family, address) for family, address in dict.fromkeys((one[0], one[4]) for one in found)]
    except OSError as error:
        raise PortInUse(_refusal(host, port, error)) from None


def _opened(family: int, address: tuple[object, ...]) -> socket.socket:
    door = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # inherited by what it accepts
    door.setblocking(False)
    return door


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}, port {port}: {error.strerror}; choose another: --host, --port"
    who = listener(port)
    owner = f" by {who.name} (pid {who.pid})" if who else ""
    return f"port {port} is in use{owner}; end that program or choose another: --port {port + 1}"
