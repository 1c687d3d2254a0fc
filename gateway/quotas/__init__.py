"""What a person or a key may use: the kinds of limits, how they stand, and the contract of who keeps them.

A person's limits hold for all their keys and sessions together; a key may have limits of its own within them. Knows
neither Redis nor HTTP. That a request keeps to them is checked, and what it used is counted, where it comes into the
line and leaves it (`admission/line.py`): that is one step of Redis, not two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from gateway.settings import Settings


class Kind(StrEnum):
    TOKENS_PER_DAY = "tokens_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"
    REQUESTS_PER_MINUTE = "requests_per_minute"
    CONCURRENCY = "concurrency"  # requests that wait or run; only of a person


OF_A_KEY = (Kind.TOKENS_PER_DAY, Kind.TOKENS_PER_MONTH, Kind.REQUESTS_PER_MINUTE)
TOKENS = (Kind.TOKENS_PER_DAY, Kind.TOKENS_PER_MONTH)
MOST = 10**15  # a limit above it is none
USUAL_WEIGHT, WEIGHTS = 1.0, (0.1, 10.0)  # of a person in the line: twice the weight, twice the share


class Source(StrEnum):
    """Whose limit it is."""

    INSTALLATION = "installation"
    PERSON = "person"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The limits of everybody who has none of their own; None: no limit."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    requests_per_minute: int | None = None
    concurrency: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Allowance":
        return cls(
            settings.tokens_per_day, settings.tokens_per_month, settings.requests_per_minute, settings.concurrency
        )

    def of(self, kind: Kind) -> int | None:
        limit: int | None = getattr(self, kind)
        return limit


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit and what was used of it. `renews_at`: seconds, when it is 0 again by itself."""

    kind: Kind
    limit: int | None
    used: int
    source: Source
    renews_at: int | None = None

    @property
    def left(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Balance:
    """All limits of somebody at one moment (`now`: seconds). There may be two of a kind: the person's and the key's."""

    now: float = 0.0
    meters: Sequence[Meter] = ()

    def nearest(self, *kinds: Kind) -> Meter | None:
        """Of these kinds the one that would refuse first."""
        known = [meter for meter in self.meters if meter.kind in kinds]
        return min(known, key=lambda meter: float("inf") if meter.left is None else meter.left, default=None)


UNLIMITED = Allowance()
Wish = int | Literal["none", "default"]  # "none": no limit; "default": that of the installation again


class Quotas(Protocol):
    """Raises StorageDown."""

    async def balance(self, person: str, key: str | None = None) -> Balance:
        """Everything that holds for the person, and for the key beside them; also what has no limit."""
        ...

    async def set(self, id: str, wishes: Mapping[Kind, Wish], expires_at: int | None = None) -> None:
        """Limits of a person, or of a key that expires then; others stay. They hold from the next request on."""
        ...

    async def weight(self, person: str) -> float:
        """Of a person in the line."""
        ...

    async def set_weight(self, person: str, weight: float) -> None:
        """From the next request on."""
        ...
