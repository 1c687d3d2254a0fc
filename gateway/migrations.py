"""The version of the data: refuses what this release cannot read, brings older data forward before it is served.

Knows no key but dm:meta. A step is a script that is run on every key of a kind. It may be killed anywhere and run
again, and several gateways may run it at the same time: its script changes a key only where that has not been done yet,
and asks `still_at` (lua/parts/version.lua) first, so a straggler of a finished step changes nothing. No lock is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.redis_client import RedisClient

BATCH = 100  # keys a script is run on at once

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """From one data version to the next.

    `script` gets the version it starts from, then names of keys that match `pattern`; it says 0 when the data has that
    version no more. A key it makes may be met again.
    """

    pattern: str
    script: str


STEPS: Sequence[Step] = ()  # the first leads from version 1 to 2; steps are added, never changed or removed
DATA_VERSION = 1 + len(STEPS)


class UnusableData(Exception):
    """The data in Redis cannot be served as it is; the message says what to do."""


class NewerData(UnusableData):
    """The data was written by a later release; starting would harm it."""


class UnfinishedRestore(UnusableData):
    """A restore was begun and did not come to its end."""


async def data_version(redis: RedisClient, newest: int = DATA_VERSION) -> int | None:
    """The version of what is stored, None where nothing was ever. Raises UnusableData, StorageDown."""
    version, restoring = await redis.call("HMGET", "dm:meta", "data_version", "restoring")
    if restoring is not None:
        raise UnfinishedRestore(
            f"A restore of the backup {restoring.decode()} into this Redis was begun and has not come to its end; "
            "run it again."
        )
    if version is not None and int(version) > newest:
        raise NewerData(
            f"The data in Redis has version {int(version)}; this release reads up to {newest}. "
            "Start the release that wrote it, or a later one."
        )
    return None if version is None else int(version)


async def bring_forward(redis: RedisClient, say: Say, steps: Sequence[Step] = STEPS) -> None:
    """Stamp a new database, or bring an older one to our version. Raises UnusableData, StorageDown, StorageFull."""
    newest = 1 + len(steps)
    while (version := await data_version(redis, newest)) != newest:
        if version is None:
            await redis.call("HSETNX", "dm:meta", "data_version", newest)
        else:
            say(f"the data is brought from version {version} to {version + 1}")
            await _take(redis, steps[version - 1], version)


async def _take(redis: RedisClient, step: Step, version: int) -> None:
    """One step from `version` on, unless another process takes it to its end before us."""
    async for names in redis.scan(step.pattern):
        for start in range(0, len(names), BATCH):
            if not await redis.run(step.script, args=[version, *names[start : start + BATCH]]):
                return
    await redis.run("stamp_data", args=[version, version + 1])
