"""From a backup into an empty Redis. dm:meta says that it is under way, so what is half restored is never served.

A restore that was cut off is begun again from nothing: all there is came from it.
"""

from collections.abc import Callable, Iterator

from gateway.backup import BackupError
from gateway.backup.file import Key, Reader
from gateway.migrations import DATA_VERSION
from gateway.redis_client import Argument, RedisClient

BYTES = 256 << 10  # of one call, about
META = b"dm:meta"

Say = Callable[[str], None]


def refuse_newer(reader: Reader) -> None:
    if reader.header.data_version > DATA_VERSION:
        raise BackupError(
            f"the backup has data version {reader.header.data_version} (made by release {reader.header.release}); this "
            f"release reads up to {DATA_VERSION}. Restore it with the release that made it, or a later one"
        )


async def refuse_full(redis: RedisClient) -> None:
    """Raises BackupError where Redis holds something that no cut off restore left behind."""
    if await redis.call("HEXISTS", META, "restoring"):
        return
    async for names in redis.scan("dm:*"):
        if set(names) - {META}:
            raise BackupError(
                "this Redis holds data already; restore into an empty one (./deskmate: into an empty data folder, "
                "which DESKMATE_HOME names)"
            )


async def load(redis: RedisClient, reader: Reader, name: str, say: Say) -> None:
    """Raises BackupError; what was there of a cut off restore is removed first."""
    refuse_newer(reader)
    await refuse_full(redis)
    await redis.call("HSET", META, "restoring", name)
    await _remove_all(redis)
    done = 0
    for batch in batches(reader.keys()):
        await redis.run("restore_keys", args=[part for key in batch for part in arguments(key)])
        done += len(batch)
        say(f"{done} of {reader.footer.records} records")
    await redis.run("end_restore", args=[reader.header.data_version])


async def _remove_all(redis: RedisClient) -> None:
    async for names in redis.scan("dm:*"):
        if found := [name for name in names if name != META]:
            await redis.call("UNLINK", *found)


def batches(keys: Iterator[Key]) -> Iterator[list[Key]]:
    batch: list[Key] = []
    size = 0
    for key in keys:
        batch.append(key)
        size += len(key.name) + sum(map(len, key.values))
        if size > BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def arguments(key: Key) -> Iterator[Argument]:
    mode, moment = "", 0
    if key.lasts_ms is not None:
        mode, moment = "for", key.lasts_ms
    elif key.until_ms is not None:
        mode, moment = "until", key.until_ms
    yield from (key.name, key.kind, mode, moment, len(key.values))
    yield from key.values
