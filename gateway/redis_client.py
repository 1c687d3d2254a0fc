"""How the gateway speaks to Redis: connects, runs the scripts of `lua/`, tells its troubles in our words.

Knows no key and no script by name. A call is sent once: what a lost reply means, only its caller can know.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from gateway.errors import StorageDown, StorageFull, Unavailable
from gateway.settings import Settings

LUA = Path(__file__).with_name("lua")
INCLUDE = "-- include "
SCAN_COUNT = 500  # keys looked at per call: well below a millisecond of Redis' time

SHUT_SECONDS = 1.0  # after a call without an answer: so long nobody waits for one, then one call tries

Argument = str | bytes | int | float


class RedisClient:
    """One installation's Redis. Raises StorageDown and StorageFull as `Conversations` promises.

    A cancelled or late call drops its connection, so no later call can receive its reply.
    """

    def __init__(
        self,
        url: str,
        password: str | None = None,
        *,
        timeout_seconds: float = 2.0,
        connections: int = 64,
        lua: Path = LUA,
    ) -> None:
        # redis-py's own retries would send a write twice, and its socket_timeout swallows cancellation on Python 3.11:
        # neither is used, one asyncio.timeout() stands around each call instead.
        pool = BlockingConnectionPool.from_url(
            url,
            password=password,
            max_connections=connections,
            timeout=timeout_seconds,
            socket_timeout=None,
            socket_connect_timeout=None,
            protocol=2,
            driver_info=None,
        )
        pool.connection_class = type("Connection", (_PackedInC, pool.connection_class), {})
        self._redis = Redis.from_pool(pool)
        self._redis.response_callbacks.clear()  # replies stay as they came, the same on every version
        self._send: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._timeout_seconds = timeout_seconds
        self._shut_until = 0.0
        self._scripts = load_scripts(lua)
        self.closed: str | None = None  # why nothing may be asked yet: calls raise StorageDown with these words

    @classmethod
    def from_settings(cls, settings: Settings) -> "RedisClient":
        file = settings.redis_password_file
        return cls(settings.redis_url, file.read_text().strip() if file else None)

    async def call(self, *command: Argument) -> Any:
        """One plain command; replies are bytes, numbers, None and lists of them."""
        self._require_open()
        return await self._translated(self._send(*command))

    async def run(self, script: str, keys: Sequence[str] = (), args: Sequence[Argument] = ()) -> Any:
        """Run `lua/<script>.lua` as one atomic step."""
        self._require_open()
        return await self._translated(self._evaluate(self._scripts[script], (len(keys), *keys, *args)))

    async def answer_seconds(self) -> float:
        """How long the shortest call takes now, its wait for a connection included. Raises StorageDown."""
        asked = time.monotonic()
        await self.call("PING")
        return time.monotonic() - asked

    async def info(self) -> Mapping[str, str]:
        """What the server tells of itself: the fields of INFO. Raises StorageDown where our user may not ask."""
        text: bytes = await self.call("INFO")
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Names that match, a few hundred at a time. Those that stay to the end all come, some may come twice."""
        cursor = b"0"
        while True:
            cursor, names = await self.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            yield names
            if cursor == b"0":
                return

    async def aclose(self) -> None:
        await self._redis.aclose()

    def _require_open(self) -> None:
        if self.closed is not None:
            raise StorageDown(self.closed)
        now = time.monotonic()
        if now < self._shut_until:
            raise StorageDown("Redis does not answer; try again in a moment.")
        if self._shut_until:  # this call tries; until it knows, nobody else waits
            self._shut_until = now + self._timeout_seconds

    async def _evaluate(self, script: "Script", rest: Sequence[Argument]) -> Any:
        try:
            return await self._send("EVALSHA", script.sha, *rest)
        except NoScriptError:  # a restarted or flushed server; nothing has run yet
            return await self._send("EVAL", script.source, *rest)

    async def _translated(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await call
        except TimeoutError as error:
            self._shut_until = time.monotonic() + SHUT_SECONDS
            raise StorageDown(f"Redis did not answer within {self._timeout_seconds:g} s; try again.") from error
        except (ConnectionError, ResponseError, OSError) as error:
            self._shut_until = 0.0  # it answered, or is known to be gone: nobody waits for nothing
            if (refusal := refusal_of(error)) is None:
                raise
            raise refusal from error
        self._shut_until = 0.0
        return answer


class _PackedInC:
    """Packs a command with hiredis; redis-py's own packing in Python costs as much as all the rest of a log append."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return [pack_command(args)]


def refusal_of(error: Exception) -> Unavailable | None:
    """Our word for a trouble of Redis; None for an error that is a mistake of ours."""
    cause = error.__cause__  # while connecting, redis-py wraps what the server said
    match cause if isinstance(cause, RedisError) else error:
        case OutOfMemoryError():
            return StorageFull("Redis has reached its memory limit; delete conversations or raise `maxmemory`.")
        case ReadOnlyError():
            return StorageFull("Redis is a read-only replica; point DESKMATE_REDIS_URL at the primary.")
        case BusyLoadingError():
            return StorageDown("Redis is still loading its data; try again in a moment.")
        case MasterDownError():
            return StorageDown("Redis is a replica that has lost its primary; try again in a moment.")
        case NoPermissionError():
            return StorageDown("Redis refuses our user; check its access rules.")
        case AuthenticationError():
            return StorageDown("Redis refuses our password; check DESKMATE_REDIS_PASSWORD_FILE.")
        case ConnectionError() | OSError():
            return StorageDown("Redis cannot be reached; try again in a moment.")
    match str(error).partition(" ")[0]:
        case "MISCONF" | "NOREPLICAS":
            return StorageFull("Redis cannot write its data to disk now; free space there, its log says more.")
        case "BUSY":
            return StorageDown("Redis is busy with a script that does not end; try again in a moment.")
    return None


@dataclass(frozen=True, slots=True)
class Script:
    source: str
    sha: str


def load_scripts(folder: Path) -> Mapping[str, Script]:
    """All scripts of the folder by name. A line `-- include NAME` stands for `parts/NAME.lua`."""
    return {path.stem: _script(path) for path in sorted(folder.glob("*.lua"))}


def _script(path: Path) -> Script:
    lines = [_included(path, line) for line in path.read_text().splitlines()]
    source = "\n".join(lines)
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def _included(path: Path, line: str) -> str:
    if not line.startswith(INCLUDE):
        return line
    return (path.parent / "parts" / f"{line.removeprefix(INCLUDE)}.lua").read_text()
