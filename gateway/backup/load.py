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
REMOVE = 500  # keys of one call

Say = Callable[[str], None]


def refuse_newer(reader: Reader) -> None:
    if reader.header.data_version > DATA_VERSION:
        raise BackupError(
            f"the backup has data version {reader.header.data_version} (made by release {reader.header.release}); this "
            f"release reads up to {DATA_VERSION}. Restore it with the release that made it, or a later one"
        )


async def load(redis: RedisClient, reader: Reader, name: str, say: Say) -> None:
    """Raises BackupError where Redis holds something already."""
    refuse_newer(reader)
    await _begin(redis, name)
    done = 0
    for batch in _batches(reader.keys()):
        await redis.run("restore_keys", args=[part for key in batch for part in _arguments(key)])
        done += len(batch)
        say(f"{done} of {reader.footer.records} records")
    await redis.run("end_restore", args=[reader.header.data_version])


async def _begin(redis: RedisClient, name: str) -> None:
    cut_off = await redis.call("HEXISTS", META, "restoring")
    async for names in redis.scan("dm:*"):
        found = [one for one in names if one != META]
        if found and not cut_off:
            raise BackupError(
                "this Redis holds data already; restore into an empty one, or stop Deskmate and remove its data first"
            )
        for start in range(0, len(found), REMOVE):
            await redis.call("UNLINK", *found[start : start + REMOVE])
    await redis.call("HSET", META, "restoring", name)


def _batches(keys: Iterator[Key]) -> Iterator[list[Key]]:
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


def _arguments(key: Key) -> Iterator[Argument]:
    mode, moment = "", 0
    if key.lasts_ms is not None:
        mode, moment = "for", key.lasts_ms
    elif key.until_ms is not None:
        mode, moment = "until", key.until_ms
    yield from (key.name, key.kind, mode, moment, len(key.values))
    yield from key.values
