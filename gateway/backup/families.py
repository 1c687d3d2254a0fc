"""Conversations as keys of a backup: each family whole as of one moment, while people go on writing.

One script tells what belongs together at that moment. What lies under a number never changes, so it is read afterwards
in small pieces; where some of it is gone by then, somebody has deleted it, and the family is read again. A conversation
that began only after names were collected is left out, so who holds what on the shelf is counted afresh.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.backup.file import Key
from gateway.backup.names import Family
from gateway.redis_client import RedisClient

MEMBERS = 60  # of one call: a millisecond or two of Redis' time; a family with more comes whole all the same
BYTES = 256 << 10  # of one call, likewise
FIELDS = 2000
ENTRIES = 500
TRIES = 5
GONE = -2  # as PTTL tells it

Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Conversation:
    id: bytes
    ttl: int
    fields: Fields
    numbers: list[int]
    turns: list[bytes]


@dataclass(frozen=True, slots=True)
class Turn:
    id: bytes
    ttl: int
    fields: Fields
    stream_ttl: int
    remembered: bytes
    remembered_ttl: int

    @property
    def runs(self) -> bool:
        return self.fields[b"status"] == b"in_progress"

    def numbers(self) -> Iterator[int]:
        """Of its items on the shelf."""
        for name in (b"in", b"out"):
            first, last = _range(self.fields.get(name, b"1-0"))
            yield from range(first, last + 1)


@dataclass(frozen=True, slots=True)
class Read:
    """A family at one moment."""

    family: Family
    highest: bytes
    ttl: int
    conversations: list[Conversation]
    turns: list[Turn]
    content: Fields = field(default_factory=dict)

    def holders(self) -> Counter[int]:
        """How many hold each item: conversations that name it, and the turn without conversation that brought it."""
        held: Counter[int] = Counter()
        for conversation in self.conversations:
            held.update(set(conversation.numbers))
        for turn in self._loose():
            held.update(set(turn.numbers()))
        return held

    def wanted(self) -> list[bytes]:
        """Fields of the shelf that must be there."""
        fields = [b"%d" % number for number in sorted(self.holders())]
        for turn in self.turns:
            first, _ = _range(turn.fields[b"in"])
            fields += [b"q%d" % first] if turn.runs else [b"q%d" % first, b"r%d" % first]
        return fields

    def as_keys(self) -> Iterator[Key]:
        owner = self.family.owner
        known = {turn.id for turn in self.turns}
        for one in self.conversations:
            name = owner + b":" + one.id
            numbers = [b"%d" % number for number in one.numbers if b"%d" % number in self.content]
            yield _key(b"dm:conv:" + name, "hash", _flat(one.fields), one.ttl)
            yield _key(b"dm:order:" + name, "list", numbers, one.ttl)
            yield _key(b"dm:turns:" + name, "list", [id for id in one.turns if id in known], one.ttl)
        for turn in self.turns:
            yield _key(b"dm:turn:" + owner + b":" + turn.id, "hash", _flat(turn.fields), turn.ttl)
            if turn.remembered.split(b" ")[0] == turn.id:
                name = b"dm:idem:" + owner + b":" + turn.fields[b"idem"]
                yield _key(name, "string", [turn.remembered], turn.remembered_ttl)
        yield _key(b"dm:shelf:" + self.family.place, "hash", _flat(self._shelf()), self.ttl)

    def running(self) -> list[bytes]:
        return [self.family.owner + b":" + turn.id for turn in self.turns if turn.runs]

    def streams(self) -> Iterator[tuple[bytes, int]]:
        """Names and TTLs."""
        for turn in self.turns:
            if turn.stream_ttl != GONE:
                yield b"dm:stream:" + self.family.owner + b":" + turn.id, turn.stream_ttl

    def _loose(self) -> list[Turn]:
        return [turn for turn in self.turns if b"conv" not in turn.fields]

    def _shelf(self) -> Fields:
        users = len(self.conversations) + len(self._loose())
        shared = {b"h%d" % number: b"%d" % count for number, count in self.holders().items() if count > 1}
        held = {name: count for name, count in shared.items() if name[1:] in self.content}
        return {b"n": self.highest, b"refs": b"%d" % users} | held | self.content


async def read(redis: RedisClient, families: Sequence[Family]) -> AsyncIterator[Read]:
    """Each family that is still there."""
    waiting, tries = list(families), Counter[bytes]()
    while waiting:
        replies = await redis.run("backup_families", args=[MEMBERS, *_asked(waiting[:MEMBERS])])
        found = [_read(family, reply) for family, reply in zip(waiting, replies, strict=False)]
        waiting = waiting[len(replies) :]
        there = [one for one in found if one.conversations or one.turns]
        await _fill(redis, there)
        for one in there:
            tries[one.family.place] += 1
            if len(one.content) == len(one.wanted()) or tries[one.family.place] == TRIES:
                yield one
            else:
                waiting.append(one.family)


async def stream(redis: RedisClient, name: bytes, ttl: int) -> AsyncIterator[Key]:
    """What is logged of a turn. It only grows, so any beginning of it is one that it had at some moment."""
    after = "-"
    while entries := await redis.call("XRANGE", name, after, "+", "COUNT", ENTRIES):
        yield _key(name, "stream", [value for id, fields in entries for value in (id, *fields)], ttl)
        after = "(" + entries[-1][0].decode()


def _asked(families: Iterable[Family]) -> Iterator[bytes | int]:
    for one in families:
        yield from (one.owner, one.shelf, len(one.conversations), len(one.turns))
        yield from one.conversations
        yield from one.turns


def _read(family: Family, reply: Sequence[Any]) -> Read:
    highest, ttl, conversations, turns = reply
    return Read(
        family,
        highest or b"0",
        ttl,
        [
            Conversation(id, ttl, _fields(flat), [int(number) for number in numbers], own)
            for id, ttl, flat, numbers, own in conversations
        ],
        [Turn(id, ttl, _fields(flat), *rest) for id, ttl, flat, *rest in turns],
    )


async def _fill(redis: RedisClient, families: Sequence[Read]) -> None:
    """Read what lies on the shelves, in pieces that Redis answers in a moment."""
    missing = [(family, name) for family in families for name in family.wanted()]
    while missing:
        values = await redis.run("backup_shelves", args=[BYTES, *_fields_asked(missing[:FIELDS])])
        for (family, name), value in zip(missing, values, strict=False):
            if value is not None:
                family.content[name] = value
        missing = missing[len(values) :]


def _fields_asked(missing: Sequence[tuple[Read, bytes]]) -> Iterator[bytes | int]:
    start = 0
    for at, (family, _) in enumerate(missing):
        if at + 1 == len(missing) or missing[at + 1][0] is not family:
            yield from (family.family.place, at + 1 - start)
            yield from (name for _, name in missing[start : at + 1])
            start = at + 1


def _key(name: bytes, kind: str, values: list[bytes], ttl: int) -> Key:
    """What has a TTL lasts as long again after a restore: nobody could use it in between."""
    return Key(name, kind, values, lasts_ms=ttl if ttl >= 0 else None)


def _fields(flat: Sequence[bytes]) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _flat(fields: Fields) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


def _range(text: bytes) -> tuple[int, int]:
    first, _, last = text.partition(b"-")
    return int(first), int(last)
