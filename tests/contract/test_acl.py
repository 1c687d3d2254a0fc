"""The rights of the compose stack's Redis on real servers: what they allow, refuse, and do not lose over a restart."""

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy import acl

TWO_WRITES = "redis.call('SET', KEYS[1], 'a'); return redis.call('RPUSH', KEYS[2], 'b')"


class Guarded:
    """A server with the stack's own file of users: nobody administers it, it is ended and started by pid."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.password = secrets.token_urlsafe(16)
        (folder / "users").write_text(acl.users(self.password))
        self._command = [binary, "--port", "0", "--unixsocket", folder / "s", "--aclfile", folder / "users",
                         "--dir", folder, "--appendonly", "yes", "--save", ""]  # fmt: skip
        self._socket = str(folder / "s")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def answers(self) -> bool:
        try:
            return self.call("health", "-", "PING") is True
        except redis.ConnectionError:  # not there yet, or still reading its file
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def call(self, user: str | None, password: str | None, *command: str | int) -> object:
        with redis.Redis(unix_socket_path=self._socket, username=user, password=password) as client:
            return client.execute_command(*command)

    def gateway(self, *command: str | int) -> object:
        return self.call(acl.GATEWAY_USER, self.password, *command)


@pytest.fixture
def guarded(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(redis_binary, tmp_path_factory.mktemp("r"))
    yield server
    server.stop()


def test_what_a_script_wrote_in_one_step_is_there_after_a_restart(guarded: Guarded):
    """Redis reads its file as the default user: one without rights forgot such writes."""
    guarded.gateway("EVAL", TWO_WRITES, 2, "dm:one", "dm:two")
    guarded.stop()
    guarded.start()
    assert guarded.gateway("GET", "dm:one") == b"a"
    assert guarded.gateway("LRANGE", "dm:two", 0, -1) == [b"b"]


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CONFIG GET *", "KEYS *", "ACL LIST", "SHUTDOWN", "SAVE", "MODULE LIST", "CLIENT LIST"],
)
def test_the_gateways_user_administers_nothing(guarded: Guarded, command: str):
    with pytest.raises(redis.exceptions.NoPermissionError):
        guarded.gateway(*command.split())


def test_it_touches_its_own_keys_only_in_a_script_too(guarded: Guarded):
    for command in (
        ("GET", "other"),
        ("SET", "other", "x"),
        ("EVAL", TWO_WRITES, 2, "dm:one", "other"),
        ("EVAL", "return redis.call('GET', 'other')", 0),
        ("EVAL", "return redis.call('FLUSHALL')", 0),
    ):
        with pytest.raises(redis.ResponseError, match=r"permission|can't access|can't run"):
            guarded.gateway(*command)


def test_nobody_gets_in_without_the_password_and_the_one_without_may_ask_for_a_pong_only(guarded: Guarded):
    with pytest.raises(redis.exceptions.AuthenticationError):
        guarded.call(None, None, "PING")
    for user, password in (("default", ""), ("default", "x"), (acl.GATEWAY_USER, "x"), (acl.GATEWAY_USER, "")):
        with pytest.raises(redis.exceptions.AuthenticationError):
            guarded.call(user, password, "PING")
    assert guarded.call("health", "-", "PING") is True
    for command in ("GET dm:one", "INFO", "CONFIG GET *"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            guarded.call("health", "-", *command.split())
