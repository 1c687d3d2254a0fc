"""Which keys there are, sorted by how they are backed up. Reads names and where things lie, no content.

What is not named here is derived from something that is: dm:convs from conversations, dm:leases from running turns,
dm:users and dm:delegates from people, dm:keys from keys, dm:sessions from sessions.
The line in front of the engine (dm:line) begins anew.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from gateway.backup import BackupError
from gateway.redis_client import RedisClient

FAMILIES = frozenset({"conv", "turn"})
ALONE = frozenset({"usage", "link", "try", "trusted", "key", "session", "limits", "used"})
PEOPLE = "username"
DERIVED = frozenset({
    "meta", "convs", "order", "turns", "shelf", "stream", "idem", "leases", "line",
    "user", "users", "delegates", "keys", "sessions",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """Conversations, and turns without one, that share a shelf."""

    owner: bytes
    shelf: bytes
    conversations: set[bytes] = field(default_factory=set)
    turns: set[bytes] = field(default_factory=set)

    @property
    def place(self) -> bytes:
        """As it stands in the shelf's key."""
        return self.owner + b":" + self.shelf


@dataclass(frozen=True, slots=True)
class Names:
    families: dict[tuple[bytes, bytes], Family] = field(default_factory=dict)
    people: set[bytes] = field(default_factory=set)
    alone: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))


async def collect(redis: RedisClient) -> Names:
    """Everything that is there from the beginning of this call to its end is among the names."""
    names = Names()
    async for page in redis.scan("dm:*"):
        members = []
        for name in page:
            kind = name.split(b":")[1].decode()
            if kind in FAMILIES:
                members.append(name)
            elif kind == PEOPLE:
                names.people.add(name)
            elif kind in ALONE:
                names.alone[kind].add(name)
            elif kind not in DERIVED:
                raise BackupError(
                    f"Redis holds keys dm:{kind}, which this release does not know; use the one that does"
                )
        await _place(redis, members, names.families)
    return names


async def _place(redis: RedisClient, members: list[bytes], families: dict[tuple[bytes, bytes], Family]) -> None:
    if not members:
        return
    places = await redis.run("backup_places", args=members)
    for name, (shelf, conversation) in zip(members, places, strict=True):
        if shelf is None:
            continue  # gone
        _, kind, owner, id = name.split(b":")
        family = families.setdefault((owner, shelf), Family(owner, shelf))
        if kind == b"conv":
            family.conversations.add(id)
        elif conversation is None:
            family.turns.add(id)
        else:
            family.conversations.add(conversation)
