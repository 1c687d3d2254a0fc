"""API keys: their shape, and the store that knows them by digest only; knows nothing of requests.

    dm_live_ + 30 random characters of base62 (178 bits) + 6 of base62 CRC-32 over all before

    dm:key:{digest}  hash    v id user name scopes (comma separated) created_at expires_at ("" never) last_used (day)
    dm:keys:{user}   set     ids of that person's keys
    dm:keys          hash    id -> digest

`digest` is HMAC-SHA256 under the installation's pepper: who reads Redis can use no key, and a lookup compares nothing.
A key with an expiry goes at most a day after it; one without stays until revoked.
"""

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from gateway.auth.principal import Scope
from gateway.auth.secret import Secrets
from gateway.redis_client import RedisClient

PREFIX = "dm_live_"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"dm_live_[0-9A-Za-z]{36}")
_CHECKSUM = 6


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key, which is everything but the key."""

    id: str
    user: str
    name: str
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None
    last_used: str | None  # the day, UTC

    @property
    def goes_at(self) -> int | None:
        """When nothing is left of it (seconds): a day after its expiry."""
        return None if self.expires_at is None else self.expires_at + 86_400

    def shown(self, user_name: str) -> dict[str, Any]:
        """What an administrator may see."""
        return {
            "id": self.id,
            "user": self.user,
            "user_name": user_name,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "last_used": self.last_used,
        }


def new_key() -> str:
    body = PREFIX + "".join(secrets.choice(_BASE62) for _ in range(30))
    return body + _checksum(body)


def has_shape(text: str) -> bool:
    """Whether `text` looks like a key: asked before anything is computed from it."""
    return _SHAPE.fullmatch(text) is not None


def is_well_formed(text: str) -> bool:
    """Whether `text` can be a key at all: asked before any store is."""
    return has_shape(text) and _checksum(text[:-_CHECKSUM]) == text[-_CHECKSUM:]


def _checksum(body: str) -> str:
    number, digits = crc32(body.encode("ascii")), ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


class Keys:
    def __init__(self, redis: RedisClient, secrets: Secrets, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._secrets = secrets
        self._clock = clock

    async def create(
        self,
        user: str,
        name: str = "",
        scopes: frozenset[Scope] = frozenset({Scope.CHAT}),
        expires_in_days: int | None = None,
    ) -> tuple[Key, str]:
        """A new key of `user` and, this once, the key itself."""
        text, id, now = new_key(), "key_" + secrets.token_hex(12), int(self._clock())
        expires_at = None if expires_in_days is None else now + expires_in_days * 86_400
        digest = self._secrets.digest_of_key(text)
        key = Key(id, user, name, scopes, now, expires_at, None)
        await self._redis.run(
            "create_key",
            [f"dm:key:{digest}", f"dm:keys:{user}", "dm:keys"],
            [id, digest, user, name, ",".join(sorted(scopes)), now, expires_at or ""],
        )
        return key, text

    async def find(self, digest: str) -> Key | None:
        """The key stored under `digest`, unless it has expired; notes the day of its use."""
        fields = await self._redis.call("HGETALL", f"dm:key:{digest}")
        key = _key(fields) if fields else None
        if key is None or self.is_expired(key):
            return None
        if key.last_used != (today := self._today()):
            await self._redis.run("mark_key_used", [f"dm:key:{digest}"], [today])
        return key

    async def get(self, id: str) -> Key | None:
        """The key of that id, also one that has just expired."""
        digest = await self._redis.call("HGET", "dm:keys", id)
        fields = await self._redis.call("HGETALL", f"dm:key:{digest.decode()}") if digest else None
        return _key(fields) if fields else None

    def is_expired(self, key: Key) -> bool:
        return key.expires_at is not None and key.expires_at <= self._clock()

    async def all(self) -> list[Key]:
        return sorted(map(_key, await self._redis.run("list_keys", ["dm:keys"])), key=lambda key: key.created_at)

    async def revoke(self, id: str) -> bool:
        """Whether there was such a key. It opens nothing from now on."""
        return bool(await self._redis.run("revoke_key", ["dm:keys"], [id]))

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()


def _key(flat: list[Any]) -> Key:
    fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return Key(
        id=fields["id"],
        user=fields["user"],
        name=fields["name"],
        scopes=frozenset(Scope(scope) for scope in fields["scopes"].split(",") if scope),
        created_at=int(fields["created_at"]),
        expires_at=int(fields["expires_at"]) if fields["expires_at"] else None,
        last_used=fields.get("last_used"),
    )
