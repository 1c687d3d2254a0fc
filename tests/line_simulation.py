"""The shared line in virtual time: its scripts on a real Redis, or its model, and an engine that is a rule of three.

Each request has its own prompt and output; every seat writes tokens at one pace, which is slower the more seats are
taken. What comes out is what people would have felt: how long they waited for the first token, what they were served.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.admission import Ticket, Waiting
from gateway.admission.line import Capacity, How
from gateway.errors import Busy
from gateway.quotas import Balance

STEP_MS = 250
LEASE_SECONDS = 2.0
DEATH_MS = 2_500  # until another gateway goes on with what a dead one had


class SharedLine(Protocol):
    """What is simulated: `Line` in Redis or `ModelLine`."""

    async def join(
        self, capacity: Capacity, id: str, ticket: Ticket, how: How = How.NEW, *, now_ms: int = 0
    ) -> tuple[Collection[str], Balance]: ...

    async def leave(
        self, capacity: Capacity, left: Mapping[str, tuple[int, int | None]], *, now_ms: int = 0
    ) -> Collection[str]: ...

    async def step(
        self,
        capacity: Capacity,
        lease_seconds: float,
        *,
        register: bool = False,
        heard: Sequence[str] = (),
        produced: Mapping[str, int] | None = None,
        now_ms: int = 0,
    ) -> tuple[bool, Collection[str]]: ...

    async def places(self, capacity: Capacity, *, now_ms: int = 0) -> Mapping[str, Waiting]: ...


@dataclass(frozen=True)
class Engine:
    """How long a step takes: a token of each seat, and prompts up to so many tokens."""

    overhead_ms: float = 10.0
    token_ms: float = 0.25  # of each seat
    prompt_tokens_a_ms: float = 8.0
    step_tokens: int = 1200  # of prompts; the plan bounds a step's time by it


@dataclass(frozen=True)
class Job:
    person: str
    prompt: int
    output: int
    most: int | None = None
    flex: bool = False
    weight: float = 1.0


@dataclass
class Ran:
    job: Job
    came: float
    read: int = 0  # tokens of the prompt
    seated: float | None = None
    first: float | None = None
    done: float | None = None
    tokens: float = 0.0
    refused: bool = False

    @property
    def waited(self) -> float:
        return ((self.first or float("inf")) - self.came) / 1000


@dataclass
class World:
    """Time in ms. `closed`: people who keep a number of requests under way; `jobs`: those that come at their time."""

    line: SharedLine
    capacity: Capacity
    first_come: bool = False  # one line for all, as if there were one person
    engine: Engine = field(default_factory=Engine)
    now: float = 0.0
    ran: list[Ran] = field(default_factory=list)
    waiting: dict[str, Ran] = field(default_factory=dict)
    flying: dict[str, Ran] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # tokens by weight of kind: 1 and 2
    history: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    told: list[tuple[Ran, float, float]] = field(default_factory=list)  # who was told which wait (s), and when
    most_flying: int = 0

    def __post_init__(self) -> None:
        self._count = itertools.count()
        self._arrivals: list[tuple[float, int, Job]] = []
        self._again: dict[str, Callable[[], Job]] = {}

    def at(self, ms: float, job: Job) -> None:
        heapq.heappush(self._arrivals, (ms, next(self._count), job))

    def closed(self, person: str, parallel: int, make: Callable[[], Job], *, start: float = 0) -> None:
        """`parallel` requests under way from `start` on: one that ends is followed by the next."""
        self._again[person] = make
        for _ in range(parallel):
            self.at(start, make())

    async def run(self, until: float) -> "World":
        if not self.now:
            await self.line.step(self.capacity, LEASE_SECONDS, register=True, now_ms=1)
        next_step = self.now
        while self.now < until:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                await self._arrive(heapq.heappop(self._arrivals)[2])
            if self.now >= next_step:
                next_step += STEP_MS
                produced = {id: int(r.tokens) for id, r in self.flying.items()}
                _, seats = await self.line.step(
                    self.capacity, LEASE_SECONDS, produced=produced, heard=list(self.flying), now_ms=int(self.now) + 1
                )
                self._seat(seats)
                self.history.append((self.now, dict(self.served)))
            await self._engine_step()
        return self

    async def _arrive(self, job: Job) -> None:
        ran = Ran(job, self.now)
        self.ran.append(ran)
        id = f"r{next(self._count)}"
        who = "all" if self.first_come else job.person
        ticket = Ticket(who, job.prompt, job.most or job.output, flex=job.flex, weight=job.weight)
        try:
            seats, _ = await self.line.join(self.capacity, id, ticket, now_ms=int(self.now) + 1)
        except Busy:
            ran.refused = True
            return
        self.waiting[id] = ran
        self._seat(seats)

    def _seat(self, ids: Iterable[str]) -> None:
        for id in ids:
            if (ran := self.waiting.pop(id, None)) is not None:
                ran.seated = self.now
                self.flying[id] = ran
        self.most_flying = max(self.most_flying, len(self.flying))

    async def look(self) -> None:
        """Note the waits that are told now."""
        for id, place in (await self.line.places(self.capacity, now_ms=int(self.now) + 1)).items():
            if place.eta_seconds is not None:
                self.told.append((self.waiting[id], place.eta_seconds, self.now))

    async def die(self, heir: SharedLine) -> None:
        """The gateway dies in the middle of all answers; the heir goes on with them once the lease has ended."""
        flying, waiting = list(self.flying.items()), list(self.waiting.items())
        self.line, self.flying, self.waiting = heir, {}, {}
        self.now += DEATH_MS
        await heir.step(self.capacity, LEASE_SECONDS, register=True, now_ms=int(self.now) + 1)
        for (id, ran), how in [(one, How.PROMISED) for one in flying] + [(one, How.NEW) for one in waiting]:
            so_far = int(ran.tokens)
            ran.job = replace(ran.job, prompt=ran.job.prompt + so_far, output=ran.job.output - so_far, most=None)
            ran.read, ran.tokens = 0, 0
            ticket = Ticket(ran.job.person, ran.job.prompt, ran.job.output, how == How.PROMISED, ran.job.flex)
            self.waiting[f"{id}-again"] = ran
            seats, _ = await heir.join(self.capacity, f"{id}-again", ticket, how, now_ms=int(self.now) + 1)
            self._seat(seats)

    async def _engine_step(self) -> None:
        """One step of the engine: new prompts are read, every other seat writes a token."""
        if not self.flying:
            pause = (
                max(1.0, min(STEP_MS, self._arrivals[0][0] - self.now)) if self._arrivals else self.engine.overhead_ms
            )
            self.now += pause
            return
        writing = [r for r in self.flying.values() if r.read == r.job.prompt]
        left = self.engine.step_tokens
        for r in self.flying.values():
            if (some := min(left, r.job.prompt - r.read)) > 0:
                r.read += some
                left -= some
                self.served[r.job.person] += some
        read = self.engine.step_tokens - left
        self.now += (
            self.engine.overhead_ms + self.engine.token_ms * len(writing) + read / self.engine.prompt_tokens_a_ms
        )
        for r in self.flying.values():
            if r.read == r.job.prompt:
                r.first = r.first or self.now
                r.tokens += 1
                self.served[r.job.person] += 2
        done = {id: r for id, r in self.flying.items() if r.tokens >= r.job.output}
        if done:
            for id, r in done.items():
                del self.flying[id]
                r.done = self.now
            left = {id: (int(r.tokens), None) for id, r in done.items()}
            self._seat(await self.line.leave(self.capacity, left, now_ms=int(self.now) + 1))
            for r in done.values():
                if again := self._again.get(r.job.person):
                    self.at(self.now, again())

    def waits(self, *people: str, after: float = 0, before: float = float("inf")) -> list[float]:
        """Seconds to the first token of those who came between, also of those who still wait."""
        return [r.waited for r in self.ran if r.job.person in people and after <= r.came < before and not r.refused]

    def service(self, person: str, start: float, end: float | None = None) -> float:
        """What a person was served between two moments."""
        at = [served.get(person, 0.0) for now, served in self.history if start <= now <= (end or self.now)]
        return at[-1] - at[0]


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 for equal shares, 1/n where one of n has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
