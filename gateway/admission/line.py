"""The line in Redis that all gateways share: each step of the algorithm is one script of `lua/` (see parts/line.lua).

Knows the scripts' arguments and answers; keeps nothing itself. Repeating any step is safe.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.admission import CLASSES, Fairness, LineState, Ticket, Waiting
from gateway.errors import Busy
from gateway.quotas import UNLIMITED, Allowance, Balance
from gateway.quotas.packing import balance_of, limits_of
from gateway.quotas.telling import refusal_of
from gateway.redis_client import Argument, RedisClient

KEPT_PART = 5  # of the seats, one in so many is kept for people who have nothing in flight
LEAST_SEATS_TO_KEEP = 4


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engines can do at once. `kv_tokens` None: unknown, and not looked at."""

    seats: int
    kv_tokens: int | None = None

    @property
    def kept(self) -> int:
        return max(1, self.seats // KEPT_PART) if self.seats >= LEAST_SEATS_TO_KEEP else 0


class How(StrEnum):
    """In which way a request comes into the line."""

    NEW = "new"
    PROMISED = "promised"
    SEATED = "seated"  # it is in flight, and its gateway was taken for dead


class Lost(Exception):
    """The line does not know this gateway (any more): it must register, and bring back what it holds."""


@dataclass(frozen=True, slots=True)
class Line:
    """One gateway's way to the line. Every method raises StorageDown; those with seats return the ids of this gateway's
    requests that have one and of which it has not said yet that it heard.

    `now_ms` 0 is Redis' own clock.
    """

    redis: RedisClient
    gateway: str
    longest: int = 256  # requests of one person that may wait
    longest_wait_seconds: float = 600.0
    everybody: Allowance = UNLIMITED

    async def join(
        self, capacity: Capacity, id: str, ticket: Ticket, how: How = How.NEW, *, now_ms: int = 0
    ) -> tuple[Collection[str], Balance]:
        """Also how the limits stand. Raises Lost, and for one that is NEW Busy, RateLimited and QuotaSpent."""
        reply, now, rows = await self.redis.run(
            "line_join",
            args=(
                *self._head(capacity, now_ms),
                id,
                ticket.person,
                "flex" if ticket.flex else "inter",
                ticket.prompt_tokens,
                ticket.max_tokens,
                ticket.weight,
                how,
                self.longest,
                round(self.longest_wait_seconds * 1000),
                ticket.key or "",
                "prompt" if ticket.promised else "request" if ticket.accepted else "nothing",
                *limits_of(self.everybody),
            ),
        )
        balance = balance_of(now, rows)
        match reply:
            case [b"lost"]:
                raise Lost
            case [b"limit", which, wait]:
                raise refusal_of(balance, balance.meters[which - 1], _seconds(wait))
            case [b"full", waiting, wait]:
                message = f"You have {waiting} requests waiting, which is the limit; wait for some of them to finish."
                raise Busy(message, retry_after_seconds=_seconds(wait) or 2.0)
            case [b"late", wait]:
                message = f"The wait is about {wait / 1000:.0f} s; ask again later."
                raise Busy(message, retry_after_seconds=wait / 1000)
        return _ids(reply), balance

    async def leave(
        self, capacity: Capacity, left: Mapping[str, tuple[int, int | None]], *, now_ms: int = 0
    ) -> Collection[str]:
        """`left`: by id, tokens produced and tokens of the prompt that had to be read (None: all of it)."""
        args: list[Argument] = []
        for id, (produced, prompt) in left.items():
            args += (id, produced, -1 if prompt is None else prompt)
        return _ids(await self.redis.run("line_leave", args=(*self._head(capacity, now_ms), *args)))

    async def step(
        self,
        capacity: Capacity,
        lease_seconds: float,
        *,
        register: bool = False,
        heard: Sequence[str] = (),
        produced: Mapping[str, int] | None = None,
        now_ms: int = 0,
    ) -> tuple[bool, Collection[str]]:
        """Also whether other gateways are there. Raises Lost unless it registers."""
        told: list[Argument] = [part for pair in (produced or {}).items() for part in pair]
        reply = await self.redis.run(
            "line_step",
            args=(
                *self._head(capacity, now_ms),
                round(lease_seconds * 1000),
                int(register),
                len(heard),
                *heard,
                *told,
            ),
        )
        if reply[0] == b"lost":
            raise Lost
        return reply[0] == b"ok", _ids(reply)

    async def places(self, capacity: Capacity, *, now_ms: int = 0) -> Mapping[str, Waiting]:
        """Of all requests of this gateway that wait."""
        reply = await self.redis.run("line_places", args=self._head(capacity, now_ms))
        found = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return {id.decode(): Waiting(place, _seconds(wait)) for id, place, wait in found}

    async def look(self, capacity: Capacity, *, now_ms: int = 0) -> LineState:
        reply = await self.redis.run("line_look", args=self._head(capacity, now_ms))
        flying, people, behind, jain, largest, among, *each = reply
        waiting, oldest = dict(zip(CLASSES, each[::2], strict=True)), dict(zip(CLASSES, each[1::2], strict=True))
        fairness = Fairness(float(jain), float(largest), among)
        return LineState(flying, people, behind, fairness, waiting, {name: ms / 1000 for name, ms in oldest.items()})

    def _head(self, capacity: Capacity, now_ms: int) -> tuple[Argument, ...]:
        return now_ms, self.gateway, capacity.seats, capacity.kept, capacity.kv_tokens or 0


def _seconds(wait_ms: int) -> float | None:
    return None if wait_ms < 0 else round(wait_ms / 1000, 1)


def _ids(reply: Sequence[bytes]) -> Collection[str]:
    return {id.decode() for id in reply[1:]}
