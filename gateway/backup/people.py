"""People and what opens the door to them, as keys of a backup. What ends at a date ends then: a restore renews nothing.

Who came only after names were collected is left out, with keys, links and sessions: no key of nobody is in a backup.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from gateway.auth.sessions import ABSOLUTE_SECONDS
from gateway.backup.file import Key
from gateway.backup.names import Names
from gateway.redis_client import RedisClient

BATCH = 200  # keys of one call

Fields = dict[bytes, bytes]


async def read(redis: RedisClient, names: Names) -> AsyncIterator[Key]:
    known: set[bytes] = set()
    async for name, (id, place, flat) in _each(redis, "backup_people", names.people):
        owner = _fields(flat).get(b"owner")
        if owner is not None and owner not in known:  # names are sorted: an owner comes before whom they speak for
            continue
        known.add(id)
        yield Key(name, "string", [id])
        yield Key(b"dm:user:" + id, "hash", flat)
        yield Key(b"dm:delegates:" + owner if owner else b"dm:users", "zset", [place, id])
    async for key in _keys(redis, names.alone["key"], known):
        yield key
    async for key in _sessions(redis, names.alone["session"], known):
        yield key
    async for key, value in _alone(redis, names.alone["link"]):
        if value[0] in known:
            yield key
    for kind in ("try", "trusted", "limits", "used"):
        async for key, _ in _alone(redis, names.alone[kind]):
            yield key


async def read_usage(redis: RedisClient, names: Names) -> AsyncIterator[Key]:
    async for name, (kind, ttl, _, value) in _each(redis, "backup_keys", names.alone["usage"]):
        if value:
            yield Key(name, kind.decode(), value, lasts_ms=ttl if ttl >= 0 else None)


async def _keys(redis: RedisClient, names: Collection[bytes], known: set[bytes]) -> AsyncIterator[Key]:
    async for key, value in _alone(redis, names):
        fields = _fields(value)
        if fields[b"user"] in known:
            yield key
            yield Key(b"dm:keys:" + fields[b"user"], "set", [fields[b"id"]])
            yield Key(b"dm:keys", "hash", [fields[b"id"], _id_of(key)])


async def _sessions(redis: RedisClient, names: Collection[bytes], known: set[bytes]) -> AsyncIterator[Key]:
    of: dict[bytes, list[bytes]] = defaultdict(list)
    last: dict[bytes, int] = defaultdict(int)
    async for key, value in _alone(redis, names):
        fields = _fields(value)
        user = fields[b"user"]
        if user in known:
            yield key
            of[user].append(_id_of(key))
            last[user] = max(last[user], int(fields[b"created_at"]))
    for user, digests in of.items():
        yield Key(b"dm:sessions:" + user, "set", digests, until_ms=(last[user] + ABSOLUTE_SECONDS) * 1000)


async def _alone(redis: RedisClient, names: Collection[bytes]) -> AsyncIterator[tuple[Key, list[bytes]]]:
    """Keys that end at a date, and what they hold."""
    async for name, (kind, _, date, value) in _each(redis, "backup_keys", names):
        if value:
            yield Key(name, kind.decode(), value, until_ms=date if date >= 0 else None), value


async def _each(redis: RedisClient, script: str, names: Collection[bytes]) -> AsyncIterator[tuple[bytes, Any]]:
    ordered: Sequence[bytes] = sorted(names)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        for name, found in zip(batch, await redis.run(script, args=batch), strict=True):
            yield name, found


def _fields(flat: Sequence[bytes]) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _id_of(key: Key) -> bytes:
    return key.name.split(b":", 2)[2]
