"""The rules of docs/fairness.md in plain Python: what the line in Redis must do, step by step. Knows no Redis.

A test lets both do the same and compares everything after each step. What the scripts add up and keep sorted is counted
and sorted anew here each time. The simulator runs on it, too: `ModelLine` is asked like a `Line`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.admission import Ticket, Waiting
from gateway.admission.line import Capacity, How, Lost
from gateway.errors import Busy
from gateway.quotas import Balance

PROMPT, OUTPUT = 1, 2  # what a token costs
FIRST_GUESS = 128  # tokens of an answer, before there was one
NEWEST = 0.2  # weight of the newest in a moving average
LIGHT_MS = 60_000  # so long seats are kept for people like the one that was seen
COMPARED_MS = 60_000  # so long a time is looked at, to see how evenly it went
PASSED_MS = 2_000  # so long a request may be passed by smaller ones
AHEAD = 4096  # of the clock: so far who takes a kept seat may be
LONGEST_READ_MS = 60_000  # so long an engine may read prompts and serve nothing
FLOOR = 0.1  # of the service, for flex while it waits
DESK, FLEX = "inter", "flex"
KINDS = (DESK, FLEX)


class Full(Busy):
    """A person's line is as long as it may be."""


class Late(Busy):
    """The wait would be longer than it may be."""


@dataclass
class Person:
    counters: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    guess: float | None = None  # tokens of the next answer


@dataclass
class Request:
    id: str
    gateway: str
    who: str
    kind: str
    prompt: int
    most: int
    weight: float
    since: int
    promised: bool
    came: int | None = None  # as which one of all that ever stood in line
    charged: float = 0
    produced: int = 0
    seated: int | None = None
    reserved: int = 0
    passed: int | None = None  # since when smaller ones pass it
    heard: bool = False  # its gateway knows that it has a seat


@dataclass(frozen=True)
class Moment:
    """Who asks, when, and what the engines can do then."""

    gateway: str
    capacity: Capacity
    now: int


@dataclass
class Model:
    """The whole line. Requests stand in the order in which they came."""

    people: dict[str, Person] = field(default_factory=dict)
    waiting: dict[str, Request] = field(default_factory=dict)
    seated: dict[str, Request] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    given: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    light: dict[str, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    mean: float = 0.0  # tokens of anybody's answer
    served: float = 0.0
    came: int = 0
    rate: float = 0.0  # what is served in a second while somebody waits
    rate_at: int = 0
    rate_served: float = 0.0
    hungry: dict[str, float] = field(default_factory=dict)  # had something waiting since then: their counter then
    compared_at: int = 0
    even: tuple[float, float, int] = (0.0, 0.0, 0)  # Jain's index of the last minute, the largest share, among how many
    paid: dict[str, int] = field(default_factory=dict)  # tokens that were charged when their gateway seemed dead

    # the four steps --------------------------------------------------------------------------------------------------
    def join(
        self, at: Moment, id: str, ticket: Ticket, how: How, longest: int, longest_wait_ms: int
    ) -> Collection[str]:
        if at.gateway not in self.leases:
            raise Lost
        self._bury(at)
        if id in self.waiting or id in self.seated:
            return self.untold(at.gateway)
        kind = FLEX if ticket.flex else DESK
        size = (ticket.prompt_tokens, ticket.max_tokens, ticket.weight)
        request = Request(id, at.gateway, ticket.person, kind, *size, at.now, how != How.NEW)
        if how == How.NEW:
            self._refuse(at, request, longest, longest_wait_ms)
        self._welcome(at, request)
        if how == How.SEATED:
            self._sit(at, request, kept=False, paid=self.paid.pop(id, None))
        else:
            self._fill(at)
        return self.untold(at.gateway)

    def leave(self, at: Moment, left: Mapping[str, tuple[int, int | None]]) -> Collection[str]:
        self._bury(at)
        for id, (produced, prompt) in left.items():
            self._gone(id, produced, prompt)
        self._fill(at)
        return self.untold(at.gateway)

    def step(
        self, at: Moment, lease_ms: int, register: bool, heard: Collection[str], produced: Mapping[str, int]
    ) -> tuple[bool, Collection[str]]:
        if not register and at.gateway not in self.leases:
            raise Lost
        self._bury(at)
        self.leases[at.gateway] = at.now + lease_ms
        for id in heard:
            if id in self.seated and self.seated[id].gateway == at.gateway:
                self.seated[id].heard = True
        for id, tokens in produced.items():
            if id in self.seated:
                self._note(self.seated[id], tokens)
        self._measure(at)
        self._compare(at)
        self._fill(at)
        return len(self.leases) > 1, self.untold(at.gateway)

    def places(self, at: Moment) -> Iterator[tuple[str, int, int | None]]:
        """Id, place, and the wait in ms."""
        ahead = 0.0
        for place, (*_, id, cost) in enumerate(sorted(self._tags()), 1):
            if self.waiting[id].gateway == at.gateway:
                yield id, place, self._wait_ms(at, ahead)
            ahead += cost

    def _tags(self) -> Iterator[tuple[int, float, int, str, float]]:
        """How each waiting request is sorted, its id and its cost."""
        promised = (request for request in self.waiting.values() if request.promised)
        yield from ((0, 0.0, number, request.id, 0.0) for number, request in enumerate(promised))
        for number, kind in enumerate(KINDS, 1):
            for who, line in self.lines(kind).items():
                tag = self.person(who).counters[kind]
                for request in line:
                    cost = self._cost(request)
                    yield number, tag, request.came or 0, request.id, cost
                    tag += cost / request.weight

    def untold(self, gateway: str) -> Collection[str]:
        """The gateway's requests that have a seat and of which it has not said that it heard."""
        return {id for id, request in self.seated.items() if request.gateway == gateway and not request.heard}

    # coming and going -------------------------------------------------------------------------------------------------
    def _refuse(self, at: Moment, request: Request, longest: int, longest_wait_ms: int) -> None:
        lines = self.lines(request.kind)
        mine, cost = lines.get(request.who, []), self._cost(request)
        if len(mine) >= longest:
            wait = self._wait_ms(at, cost * len(lines))
            raise Full(f"{len(mine)} wait", retry_after_seconds=seconds(wait) or 2.0)
        if self._somebody_waits():
            start = max(self.person(request.who).counters[request.kind], self.clocks[request.kind])
            before = sum(self.person(who).counters[request.kind] <= start for who in lines)
            wait = self._wait_ms(at, cost * (len(mine) * len(lines) if mine else before))
            if wait is not None and wait > longest_wait_ms:
                raise Late(f"{wait} ms", retry_after_seconds=wait / 1000)

    def _welcome(self, at: Moment, request: Request) -> None:
        """Who has nothing waiting begins at the clock: nobody is owed what they did not ask for."""
        person, kind = self.person(request.who), request.kind
        if request.who not in self.lines(kind):
            person.counters[kind] = max(person.counters[kind], self.clocks[kind])
        if not request.promised:
            self.came += 1
            request.came = self.came
            if kind == DESK and not self._has_anything(request.who):
                self.light[request.who] = at.now
            self._welcome_class(kind)
        self.waiting[request.id] = request

    def _welcome_class(self, kind: str) -> None:
        """Neither is a class of which nobody waits."""
        if not self.lines(kind):
            share = {FLEX: self.given[DESK] * FLOOR / (1 - FLOOR), DESK: self.given[FLEX] * (1 - FLOOR) / FLOOR}
            self.given[kind] = max(self.given[kind], share[kind])

    def _gone(self, id: str, produced: int | None = None, prompt: int | None = None) -> None:
        if (left := self.waiting.pop(id, None)) is not None:
            self._fed(left)
        if (request := self.seated.pop(id, None)) is None:
            return
        tokens = request.produced if produced is None else produced
        self._tell(request, tokens)
        real = PROMPT * (request.prompt if prompt is None else prompt) + OUTPUT * tokens
        self._charge(request, real - request.charged)
        if produced:
            person = self.person(request.who)
            person.guess = moved(person.guess, produced)
            self.mean = moved(self.mean or None, produced)

    def _bury(self, at: Moment) -> None:
        """Gateways that were silent for too long, but for the one that speaks."""
        for dead in [name for name, end in self.leases.items() if end <= at.now and name != at.gateway]:
            del self.leases[dead]
            for id in [id for id, one in (self.waiting | self.seated).items() if one.gateway == dead]:
                if id in self.seated:
                    self.paid[id] = self.seated[id].produced
                self._gone(id)

    # who is next ------------------------------------------------------------------------------------------------------
    def _fill(self, at: Moment) -> None:
        self.light = {who: when for who, when in self.light.items() if when > at.now - LIGHT_MS}
        while len(self.seated) < at.capacity.seats:
            promised = next((request for request in self.waiting.values() if request.promised), None)
            chosen = promised or self._next(at)
            if chosen is None:
                return
            self._sit(at, chosen, kept=promised is None and not self._free(at))

    def _next(self, at: Moment) -> Request | None:
        behind, free = self.given[FLEX] * (1 - FLOOR) < self.given[DESK] * FLOOR, self._free(at)
        for kind in reversed(KINDS) if behind else KINDS:
            lines = self.lines(kind)
            for who in sorted(lines, key=lambda who: (self.person(who).counters[kind], lines[who][0].came or 0)):
                request = lines[who][0]
                if not free and not self._may_take_kept(request):
                    continue
                if self.fits(at.capacity, request):
                    return request
                if request.passed is None:
                    request.passed = at.now
                if at.now - request.passed > PASSED_MS:
                    return None  # everybody waits until there is memory for it
        return None

    def _sit(self, at: Moment, request: Request, *, kept: bool, paid: int | None = None) -> None:
        counter = self.person(request.who).counters[request.kind]
        if not (request.promised or kept):
            self.clocks[request.kind] = max(self.clocks[request.kind], counter)
        self.waiting.pop(request.id)
        self._fed(request)
        self.seated[request.id] = request
        request.seated, request.reserved = at.now, self.need(request)
        if paid is not None:
            request.charged, request.produced = PROMPT * request.prompt + OUTPUT * paid, paid
            return
        # What an answer that has begun will still come to is not known.
        request.charged = PROMPT * request.prompt if request.promised else self._cost(request)
        self._charge(request, request.charged)
        self.served += PROMPT * request.prompt

    def _free(self, at: Moment) -> bool:
        """Whether a seat is free that is not kept."""
        return len(self.seated) < at.capacity.seats - self.kept(at.capacity)

    def _may_take_kept(self, request: Request) -> bool:
        near = self.person(request.who).counters[DESK] <= self.clocks[DESK] + AHEAD
        return request.kind == DESK and near and self.in_flight(request.who) == 0

    def kept(self, capacity: Capacity) -> int:
        """While two people are there of whom one was light."""
        if len(self.light) > 1:
            return capacity.kept
        present = {request.who for request in self.seated.values()}
        present |= {request.who for request in self.waiting.values() if not request.promised}
        return capacity.kept if any(present - {light} for light in self.light) else 0

    def fits(self, capacity: Capacity, request: Request) -> bool:
        """Whether there is memory for it; one that is alone may always try."""
        if capacity.kv_tokens is None or not self.seated:
            return True
        return self.reserved + self.need(request) <= capacity.kv_tokens

    # what it costs ----------------------------------------------------------------------------------------------------
    def _cost(self, request: Request) -> float:
        return PROMPT * request.prompt + OUTPUT * self._expected(request)

    def need(self, request: Request) -> int:
        return request.prompt + min(request.most, 2 * self._expected(request))

    def _expected(self, request: Request) -> int:
        return min(request.most, math.ceil(self.person(request.who).guess or self.mean or FIRST_GUESS))

    def _charge(self, request: Request, cost: float) -> None:
        self.person(request.who).counters[request.kind] += cost / request.weight
        self.given[request.kind] += cost

    def _note(self, request: Request, tokens: int) -> None:
        """An answer that is longer than was expected is charged while it is written."""
        self._tell(request, tokens)
        more = PROMPT * request.prompt + OUTPUT * tokens - request.charged
        if more > 0:
            self._charge(request, more)
            request.charged += more

    def _tell(self, request: Request, tokens: int) -> None:
        self.served += OUTPUT * max(0, tokens - request.produced)
        request.produced = max(request.produced, tokens)

    def _measure(self, at: Moment) -> None:
        """The service of a second, about once a second, while somebody waits; longer while an engine only reads."""
        since, served = at.now - self.rate_at, self.served - self.rate_served
        if since < 1000:
            return
        if since < LONGEST_READ_MS and self._somebody_waits():
            if not served:
                return
            self.rate = moved(self.rate or None, served * 1000 / since)
        self.rate_at, self.rate_served = at.now, self.served

    def _fed(self, request: Request) -> None:
        """After one has left the line: whoever has no more in it is not hungry."""
        if request.who not in self.lines(DESK):
            self.hungry.pop(request.who, None)

    def _compare(self, at: Moment) -> None:
        """Once a minute: of those who wanted more all the time."""
        if at.now - self.compared_at < COMPARED_MS:
            return
        given = [self.person(who).counters[DESK] - before for who, before in self.hungry.items()]
        squares = sum(one * one for one in given)
        self.even = (
            sum(given) ** 2 / (len(given) * squares) if squares else 1.0,
            max(0.0, *given) / sum(given) if sum(given) > 0 else 0.0,
            len(given),
        )
        self.hungry = {who: self.person(who).counters[DESK] for who in self.lines(DESK)}
        self.compared_at = at.now

    def _wait_ms(self, at: Moment, ahead: float) -> int | None:
        """Until so much is served and one of those in flight has ended; None while nothing is known."""
        if self.rate <= 0 or at.capacity.seats <= 0:
            return None
        return math.ceil((ahead + OUTPUT * (self.mean or FIRST_GUESS)) / self.rate * 1000)

    # looks ------------------------------------------------------------------------------------------------------------
    def person(self, who: str) -> Person:
        return self.people.setdefault(who, Person())

    def lines(self, kind: str) -> dict[str, list[Request]]:
        """Who waits in this class with what, the oldest first."""
        found: dict[str, list[Request]] = {}
        for request in self.waiting.values():
            if request.kind == kind and not request.promised:
                found.setdefault(request.who, []).append(request)
        return found

    def in_flight(self, who: str) -> int:
        return sum(request.who == who for request in self.seated.values())

    @property
    def reserved(self) -> int:
        return sum(request.reserved for request in self.seated.values())

    def _has_anything(self, who: str) -> bool:
        """In line or in flight; one whose answer has begun stands in no class' line."""
        return self.in_flight(who) > 0 or any(who in self.lines(kind) for kind in KINDS)

    def _somebody_waits(self) -> bool:
        return any(not request.promised for request in self.waiting.values())


@dataclass(frozen=True)
class ModelLine:
    """One gateway's way to the line that is a model: the same methods, answers and exceptions as those of `Line`."""

    model: Model
    gateway: str
    longest: int = 256
    longest_wait_seconds: float = 600.0

    async def join(
        self, capacity: Capacity, id: str, ticket: Ticket, how: How = How.NEW, *, now_ms: int = 0
    ) -> tuple[Collection[str], Balance]:
        limits = (self.longest, round(self.longest_wait_seconds * 1000))
        return self.model.join(Moment(self.gateway, capacity, now_ms), id, ticket, how, *limits), Balance()

    async def leave(
        self, capacity: Capacity, left: Mapping[str, tuple[int, int | None]], *, now_ms: int = 0
    ) -> Collection[str]:
        return self.model.leave(Moment(self.gateway, capacity, now_ms), left)

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
        at = Moment(self.gateway, capacity, now_ms)
        return self.model.step(at, round(lease_seconds * 1000), register, heard, produced or {})

    async def places(self, capacity: Capacity, *, now_ms: int = 0) -> Mapping[str, Waiting]:
        found = self.model.places(Moment(self.gateway, capacity, now_ms))
        return {id: Waiting(place, seconds(wait)) for id, place, wait in found}


def moved(mean: float | None, newest: float) -> float:
    """A moving average, which begins with its first value."""
    return newest if mean is None else mean + NEWEST * (newest - mean)


def seconds(wait_ms: int | None) -> float | None:
    return None if wait_ms is None else round(wait_ms / 1000, 1)
