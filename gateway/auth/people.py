"""The people of an installation in Redis; knows neither how they sign in nor what they may see.

    dm:user:{id}          hash    v name role department disabled created_at password (Argon2, absent without one)
                                signed_in (absent until the first time) owner (only of a front end's people)
    dm:username:{folded}  string  id; a name belongs to one person, whatever its case
    dm:users              zset    id by the time of its making
    dm:delegates:{id}     zset    the same of those whom the front end of that person names, who are not in dm:users

A person is never deleted here, only disabled, so these keys have no TTL. Whom a front end names is called
`{owner's name}/{name}`: there the name stands to the letter, for it may be an id.
"""

import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from gateway.auth.principal import Role
from gateway.errors import BadRequest, Forbidden
from gateway.redis_client import RedisClient

LONGEST_NAME = 128
NAMESPACE = "/"  # stands in the names of people a delegate key speaks for, and in no other
_BATCH = 500  # people of one call


@dataclass(frozen=True, slots=True)
class Person:
    id: str
    name: str
    role: Role
    created_at: int
    department: str | None = None
    disabled: bool = False
    password_hash: str | None = None
    has_signed_in: bool = False
    owner: str | None = None  # whose front end names them
    keys: int = 0  # only counted in lists
    speaks_for: int = 0  # likewise

    def shown(self) -> dict[str, Any]:
        """What an administrator may see."""
        return {
            "id": self.id,
            "name": self.name,
            "role": self.role,
            "department": self.department,
            "disabled": self.disabled,
            "created_at": self.created_at,
            "keys": self.keys,
            "speaks_for": self.speaks_for,
        }


class People:
    def __init__(self, redis: RedisClient, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock

    async def create(self, name: str, role: Role = Role.MEMBER, department: str | None = None) -> Person:
        """A new person. Raises BadRequest (`name_taken`, `invalid_value`)."""
        person, new = await self._ensure(valid_name(name), role, department)
        if not new:
            raise BadRequest(f"There is already a person named '{name}'.", code="name_taken", param="name")
        return person

    async def ensure(self, name: str, role: Role = Role.MEMBER) -> Person:
        """The person of that name, made with `role` when new. However many ask at once, one is made."""
        person, _ = await self._ensure(valid_name(name), role, None)
        return person

    async def delegate(self, owner: Person, name: str, most: int) -> Person:
        """The person whom `owner`'s front end calls `name`, made at first; apart from everybody who signs in here.

        Raises Forbidden for a new one when there are `most` already.
        """
        if owner.owner:
            raise BadRequest("A delegated person cannot delegate.")
        whole = f"{owner.name}{NAMESPACE}{name}"
        if (known := await self.named(whole)) is not None:
            return known
        id = _new_id()
        found = await self._redis.run(
            "create_delegate",
            [f"dm:username:{folded(whole)}", f"dm:user:{id}", f"dm:delegates:{owner.id}"],
            [id, whole, Role.MEMBER.value, int(self._clock()), self._clock(), owner.id, most],
        )
        if not found:
            raise Forbidden(
                f"'{owner.name}' speaks for {most:,} people, which is the limit (setting DESKMATE_DELEGATE_PEOPLE).",
                code="too_many_people",
            )
        return await self._there(found.decode())

    async def delegates(self, owner: str) -> AsyncIterator[Person]:
        """All whom the front end of that person names, the newest first."""
        first = 0
        while found := await self._listed(f"dm:delegates:{owner}", first, first + _BATCH - 1, "REV"):
            for person in found:
                yield person
            first += _BATCH

    async def get(self, id: str) -> Person | None:
        fields = await self._redis.call("HGETALL", f"dm:user:{id}")
        return _person(id, fields) if fields else None

    async def named(self, name: str) -> Person | None:
        id = await self._redis.call("GET", f"dm:username:{folded(name)}")
        return await self.get(id.decode()) if id else None

    async def all(self) -> list[Person]:
        """Everybody who signs in here, oldest first, with what is counted of them."""
        return await self._listed("dm:users", 0, -1)

    async def _listed(self, where: str, first: int, last: int, *order: str) -> list[Person]:
        rows = await self._redis.run("list_people", [where], [first, last, *order])
        return [_person(id.decode(), fields, keys, speaks_for) for id, keys, speaks_for, fields in rows]

    async def disable(self, id: str) -> None:
        """From now on no key, session or link of theirs is good; their sessions end for ever."""
        await self._redis.run("disable_person", [f"dm:user:{id}", f"dm:sessions:{id}"])

    async def enable(self, id: str) -> None:
        await self._redis.call("HSET", f"dm:user:{id}", "disabled", 0)

    async def set_role(self, id: str, role: Role) -> None:
        await self._redis.call("HSET", f"dm:user:{id}", "role", role.value)

    async def set_password_hash(self, id: str, password_hash: str) -> None:
        await self._redis.call("HSET", f"dm:user:{id}", "password", password_hash)

    async def _ensure(self, name: str, role: Role, department: str | None) -> tuple[Person, bool]:
        id = _new_id()
        keys = [f"dm:username:{folded(name)}", f"dm:user:{id}", "dm:users"]
        args = [id, name, role.value, department or "", int(self._clock()), self._clock()]
        found = (await self._redis.run("create_person", keys, args)).decode()
        return await self._there(found), found == id

    async def _there(self, id: str) -> Person:
        person = await self.get(id)
        if person is None:
            raise RuntimeError(f"dm:username names {id}, but there is no dm:user:{id}")
        return person


def refuse_delegate(person: Person) -> None:
    """Raises BadRequest for somebody who has no business on the page."""
    if person.owner:
        raise BadRequest(f"'{person.name}' comes through a front end and does not sign in here.", code="delegated")


def _new_id() -> str:
    return "user_" + secrets.token_hex(12)


def valid_name(name: str) -> str:
    """`name` as it is stored. Raises BadRequest."""
    name = _clean(name)
    if NAMESPACE in name:
        raise BadRequest(f"A name cannot contain '{NAMESPACE}'.", param="name")
    return name


def folded(name: str) -> str:
    """What two names have in common that are one to people. A front end's own word for its person stays as it is."""
    name, slash, theirs = unicodedata.normalize("NFC", name).partition(NAMESPACE)
    return unicodedata.normalize("NFC", name.casefold()).strip() + slash + theirs


def _clean(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(name) <= LONGEST_NAME:
        raise BadRequest(f"A name has 1 to {LONGEST_NAME} characters.", param="name")
    if not name.isprintable():
        raise BadRequest("A name cannot contain control characters.", param="name")
    return name


def _person(id: str, flat: list[Any], keys: int = 0, speaks_for: int = 0) -> Person:
    fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return Person(
        id=id,
        name=fields["name"],
        role=Role(fields["role"]),
        created_at=int(fields["created_at"]),
        department=fields["department"] or None,
        disabled=fields["disabled"] == "1",
        password_hash=fields.get("password"),
        has_signed_in="signed_in" in fields,
        owner=fields.get("owner"),
        keys=keys,
        speaks_for=speaks_for,
    )
