"""Where the worker will listen: refuses a port or socket that is taken, removes a dead one. Serves nothing."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from worker.refusal import BadConfiguration, Unavailable

LONGEST_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class OnPort:
    host: str
    port: int

    def flags(self) -> tuple[str, ...]:
        return "--host", self.host, "--port", str(self.port)

    def make_free(self) -> None:
        """Raises Unavailable, naming the owner when /proc tells it."""
        try:
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with closing(socket.socket(family, socket.SOCK_STREAM)) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(address)
                attempt.listen()
        except socket.gaierror as error:
            raise Unavailable(
                f"cannot resolve the host {self.host!r} ({error.strerror}). Give --host an address."
            ) from None
        except PermissionError:
            raise Unavailable(f"port {self.port} may not be opened by this user. Give --port one above 1023.") from None
        except OSError:
            owner = owner_of_port(self.port)
            who = f" by process {owner}" if owner else ""
            raise Unavailable(
                f"port {self.port} on {self.host} is in use{who}. Stop it or give --port another one."
            ) from None


@dataclass(frozen=True, slots=True)
class OnSocket:
    path: Path

    def flags(self) -> tuple[str, ...]:
        return "--uds", str(self.path)

    def make_free(self) -> None:
        """Removes the file of a server that is gone (vLLM leaves it and cannot bind over it); never anything else."""
        if len(str(self.path).encode()) > LONGEST_SOCKET_PATH_BYTES:
            raise BadConfiguration(f"the socket's path is longer than 107 bytes: {self.path}. Choose a shorter one.")
        if not self.path.parent.is_dir():
            raise BadConfiguration(f"no such folder for the socket: {self.path.parent}. Make it first.")
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.path.is_socket():
            raise Unavailable(f"{self.path} exists and is not a socket. Remove it or give --uds another path.")
        if answers(self.path):
            raise Unavailable(f"another server listens on {self.path}. Stop it or give --uds another path.")
        self.path.unlink()


def answers(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as attempt:
        try:
            attempt.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def owner_of_port(port: int) -> str | None:
    """`PID (name)` of the process that listens on the port; None when it belongs to somebody else."""
    wanted = {f"socket:[{inode}]" for inode in listening_inodes(port)}
    for link in Path("/proc").glob("[0-9]*/fd/*") if wanted else ():
        try:
            if str(link.readlink()) in wanted:
                name = (link.parents[1] / "comm").read_text(encoding="utf-8").strip()
                return f"{link.parents[1].name} ({name})"
        except OSError:  # ended meanwhile, or not ours to look at
            continue
    return None


def listening_inodes(port: int) -> list[str]:
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text(encoding="ascii").splitlines()[1:] if table.exists() else ():
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                found.append(columns[9])
    return found
