"""Who may run now: the contract of the queue in front of the engine; `queue.py` fulfils it, `line.py` decides.

Knows nothing of HTTP, of prompts or of answers: a ticket is a person and a size.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.quotas import Balance

CLASSES = ("inter", "flex", "promised")  # whoever waits is in one of them; the last go on with an answer that has begun


@dataclass(frozen=True, slots=True)
class Ticket:
    person: str  # who is served by it; a person's ten keys are one person
    prompt_tokens: int
    max_tokens: int
    promised: bool = False  # its answer has begun already: never refused, and before whoever waits for a first word
    flex: bool = False  # it can wait: only a floor of the service while others are there
    weight: float = 1.0  # of the person; twice the weight, twice the share
    key: str | None = None  # they came with; it may have limits of its own
    accepted: bool = False  # by a gateway that died: it is within its limits, and counted


@dataclass(frozen=True, slots=True)
class Waiting:
    position: int  # 1 is next; 0 says the seat is given
    eta_seconds: float | None  # None while nothing is known, e.g. before the first answer


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly the last minute went among those who wanted more all the time, by what they were given and weight."""

    jain: float  # Jain's index: 1 all alike, 1/n where one of n had everything
    largest: float  # share of the one who had most
    people: int  # they are


@dataclass(frozen=True, slots=True)
class LineState:
    """The line over all gateways. `behind`: what who was served least of those waiting lacks to the virtual clock."""

    flying: int
    people: int
    behind: int
    fairness: Fairness
    waiting: Mapping[str, int]  # by class: inter, flex, promised
    oldest_seconds: Mapping[str, float]  # likewise


class Place(Protocol):
    """One request's place in line, later its seat. Whoever got it releases it, in every case."""

    produced: int  # tokens of the answer so far; whoever has the seat writes it
    balance: Balance  # of its person's limits, this request counted

    def wait(self) -> AsyncIterator[Waiting]:
        """The place now and, as long as it takes, about once a second; ends when the seat is given, after a last
        `Waiting(0, 0.0)`. A seat free at once gives just that one."""
        ...

    async def release(self, tokens: int = 0, prompt: int | None = None) -> None:
        """Leave the line or give the seat back. Safe to repeat.

        `tokens` were really produced, and `prompt` tokens really read (less those of the prefix cache); None: as many
        as the ticket said. Both are what the person, and the key, have used.
        """
        ...


class Admission(Protocol):
    def check(self, *, flex: bool) -> None:
        """Raise Overloaded where nothing new is taken now; instant. Worth asking before anything is written."""
        ...

    async def enqueue(self, ticket: Ticket) -> Place:
        """Take a place: instant. Raises Busy when the person's line or the estimated wait is too long already,
        RateLimited or QuotaSpent past a limit of the person or the key, StorageDown, and what `check` raises unless the
        request was taken before: what has begun goes on."""
        ...
