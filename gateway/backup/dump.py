"""From Redis into a backup, while people go on writing. Knows in which order; how each thing is read, others know.

Everything that was acknowledged before it began is in it; a conversation is as it was at one moment during it.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gateway.backup import families, people
from gateway.backup.file import Key, Writer
from gateway.backup.names import Family, Names, collect
from gateway.redis_client import RedisClient

TOGETHER = 500  # families that are asked for, in as many calls as it takes
EXPIRED = b"1"  # when the leases of a backup's running turns ended: whoever serves it ends these turns at once

Say = Callable[[str], None]


@dataclass(slots=True)
class Lists:
    """What leads to conversations and running turns, made from those that were read."""

    running: list[bytes] = field(default_factory=list)
    used: dict[bytes, list[tuple[bytes, bytes]]] = field(default_factory=lambda: defaultdict(list))
    longest: dict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    conversations: int = 0

    def note(self, read: families.Read) -> None:
        owner = read.family.owner
        self.running += read.running()
        for one in read.conversations:
            self.conversations += 1
            self.used[owner].append((one.fields[b"updated"], one.id))
            self.longest[owner] = -1 if -1 in (one.ttl, self.longest[owner]) else max(self.longest[owner], one.ttl)

    def as_keys(self) -> Iterator[Key]:
        for owner, used in self.used.items():
            values = [part for pair in sorted(used) for part in pair]
            lasts = self.longest[owner]
            yield Key(b"dm:convs:" + owner, "zset", values, lasts_ms=None if lasts == -1 else lasts)
        yield Key(b"dm:leases", "zset", [part for member in sorted(self.running) for part in (EXPIRED, member)])


async def dump(redis: RedisClient, writer: Writer, say: Say) -> None:
    names = await collect(redis)
    say(f"{len(names.people)} people, {len(names.families)} families of conversations")
    async for key in people.read(redis, names):
        writer.write(key)
    async for key in people.read_usage(redis, names):
        writer.write(key)
    lists = await _conversations(redis, names, writer, say)
    for key in lists.as_keys():
        writer.write(key)
    writer.close(conversations=lists.conversations, people=len(names.people))


async def _conversations(redis: RedisClient, names: Names, writer: Writer, say: Say) -> Lists:
    lists, done = Lists(), 0
    for some in _batches(names.families.values()):
        async for read in families.read(redis, some):
            lists.note(read)
            for key in read.as_keys():
                writer.write(key)
            for name, ttl in read.streams():
                async for key in families.stream(redis, name, ttl):
                    writer.write(key)
        done += len(some)
        say(f"{done} of {len(names.families)} families, {writer.bytes / 1e6:.1f} MB")
    return lists


def _batches(all_families: Iterable[Family]) -> Iterator[list[Family]]:
    rest = iter(all_families)
    while batch := list(itertools.islice(rest, TOGETHER)):
        yield batch
