"""What every client did and saw, and every fault that was put in. Only records; `checker.py` judges."""

import math
import re
import time
from dataclasses import dataclass, field

STATE = re.compile(rb'^event: deskmate:progress\n.*"state":"(\w+)"')
NUMBER = re.compile(rb'"sequence_number":(\d+)}$')


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call. `status` None: it broke before an answer; `silence`: the longest wait for a next byte."""

    at: float
    seconds: float
    person: str
    what: str
    status: int | None
    code: str | None = None
    key: str | None = None
    turn: str | None = None
    request_id: str | None = None
    retry_after: str | None = None
    typed: bool = True  # an answer, or an error with a code and a sentence
    silence: float = 0.0
    seen: int = 0  # events


@dataclass(eq=False, slots=True)
class Question:
    """One question of a person, however many posts and connections it took."""

    person: str
    user: str
    conversation: str
    text: str
    key: str
    turns: set[str] = field(default_factory=set)  # response ids that its posts were answered with: one, or it is twice
    events: dict[int, bytes] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # what was seen once and otherwise later, or with a gap
    end: str | None = None  # the type of the last event
    refused: str | None = None  # why it was given up
    stopped: bool = False
    deleted: bool = False
    progress: list[tuple[str, float]] = field(default_factory=list)  # states that were told, and when (monotonic)
    resumed: list[float] = field(default_factory=list)  # seconds from a broken stream to the next event

    @property
    def acknowledged(self) -> bool:
        return bool(self.turns)

    @property
    def turn(self) -> str:
        return next(iter(self.turns))

    @property
    def last(self) -> int:
        return max(self.events, default=-1)

    def waited(self, state: str, since: float) -> list[float]:
        """How long after a moment (monotonic) the first progress event of this state was heard, if it was."""
        return [heard - since for told, heard in self.progress if told == state and heard > since][:1]

    def see(self, event: bytes) -> None:
        """An event as it came. Whatever contradicts what was seen before is noted."""
        found = NUMBER.search(event)
        if found is None:
            self.changed.append(f"an event without a number: {event[:80]!r}")
            return
        number = int(found[1])
        if (before := self.events.get(number)) is not None:
            if before != event:
                self.changed.append(f"event {number} was {before[-120:]!r} and came again as {event[-120:]!r}")
        elif number != len(self.events):
            self.changed.append(f"event {number} came after {len(self.events) - 1}")
        elif (state := STATE.search(event)) is not None:
            self.progress.append((state[1].decode(), time.monotonic()))
        self.events.setdefault(number, event)


@dataclass(slots=True)
class Fault:
    kind: str
    at: float = field(default_factory=time.time)
    until: float | None = None  # still there


@dataclass(eq=False)
class History:
    calls: list[Call] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)  # conversations
    people: dict[str, str] = field(default_factory=dict)  # name → user id
    everybody: set[str] = field(default_factory=set)  # who ever came, also to an earlier test

    def fault(self, kind: str, count: int = 1) -> Fault:
        faults = [Fault(kind) for _ in range(count)]
        self.faults += faults
        return faults[-1] if faults else Fault(kind)

    def comes(self, name: str, user: str) -> None:
        self.people[name] = user
        self.everybody.add(user)

    def clear(self) -> None:
        for kept in (self.calls, self.questions, self.faults, self.deleted, self.people):
            kept.clear()


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99; of nothing, not a number."""
    if not seconds:
        return math.nan, math.nan
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def told(seconds: list[float]) -> str:
    p50, p99 = percentiles(seconds)
    return f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms"
