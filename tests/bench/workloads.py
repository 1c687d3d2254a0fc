"""FS1 to FS11: who asks what beside whom, and which figures that gives. Each is played by people on a real engine and
by people in virtual time alike; it knows neither.

direct             the engine alone: first come, first served
first-come         through the gateway, everybody with one key: one person's line
first-come on W    the same, on the seats that are not kept
FQ1                through the gateway, everybody as themselves
alone              FQ1 without the heavy one
"""

import asyncio
import statistics
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from tests.bench.chart import Chart, Points
from tests.bench.crowd import Shape
from tests.line_model import AHEAD
from tests.line_simulation import jain, percentile

DIRECT, FIRST_COME, ON_W, FAIR, ALONE = "direct", "first-come", "first-come on W", "FQ1", "alone"
HEAVY = "heavy"
LIGHT = [f"light{number}" for number in range(10)]
PEOPLE = [HEAVY, *LIGHT, *(f"other{number}" for number in range(14))]
KEYS_OF_THE_HEAVY = 10
LIGHT_SHARE = 0.15  # of the tokens that the engine can write
FAST_MS = 10.0  # between two tokens: up to then lengths are those of the papers, else half of them
EDGE = 0.2  # of the time at each end of a run is cut

Play = Callable[["People", "Setting"], Coroutine[None, None, object]]
Of = Callable[["People"], float]


class People(Protocol):
    """What a workload asks of those who play it. Times in seconds since they began."""

    def always(
        self, person: str, parallel: int, shape: Shape, until: float, start: float = 0.0, *, stay: bool = False
    ) -> Coroutine[None, None, None]:
        """`stay`: at the end they wait for the answers that they have begun."""

    def sometimes(
        self, person: str, a_second: float, shape: Shape, until: float, start: float = 0.0
    ) -> Coroutine[None, None, None]: ...

    async def weigh(self, weights: Mapping[str, float]) -> None: ...

    async def kill(self, at: float) -> None:
        """The gateway, and it begins anew."""

    def waits(self, people: Collection[str], after: float, before: float) -> list[float]: ...

    def service(self, person: str, start: float, end: float) -> float: ...

    def estimates(self) -> list[tuple[float, float]]: ...

    def refused(self) -> list[int]:
        """The status of each request that was not answered; −1: nobody was there."""

    def off(self) -> float:
        """Tokens that the line was charged and nobody was served, or the other way round; of a run that is over."""


@dataclass(frozen=True)
class Setting:
    """`rate`: tokens a second that the engine writes with all seats taken. `long`: tokens of a long prompt."""

    seats: int
    rate: float
    seconds: float
    parallel: int = 32  # requests of the heavy one
    long: int = 128

    @property
    def short(self) -> int:
        return self.long // 2

    @property
    def shape(self) -> Shape:
        return Shape.of(self.long, self.short)

    @property
    def varied(self) -> Shape:
        """A quarter more or less: equal ones begin and end together for ever, as nobody's do."""
        return Shape(*((mean - mean // 4, mean + mean // 4) for mean in (self.long, self.short)))

    @property
    def light(self) -> Shape:
        return Shape((self.long // 4, self.long), (self.short // 4, self.short // 2))

    @property
    def inner(self) -> tuple[float, float]:
        """The time that is looked at."""
        return EDGE * self.seconds, (1 - EDGE) * self.seconds

    def a_second(self, part: float, shape: Shape) -> float:
        """So many requests are that part of what the engine can write."""
        return part * self.rate / (sum(shape.output) / 2)


Goal = tuple[str, Callable[[float], bool]]


def at_most(value: float, told: str = "") -> Goal:
    return told or f"≤ {value:g}", lambda found: found <= value


def at_least(value: float) -> Goal:
    return f"≥ {value:g}", lambda found: found >= value


@dataclass(frozen=True)
class Row:
    """One figure of each arm."""

    workload: str
    figure: str
    of: Mapping[str, float]
    form: str = ".2f"
    goal: Goal | None = None
    is_ratio: bool = False  # of figures that are told, too, or a difference

    @property
    def reached(self) -> bool | None:
        return None if self.goal is None or FAIR not in self.of else self.goal[1](self.of[FAIR])


@dataclass
class Played:
    """Everybody who played one workload, by arm: one for each round."""

    name: str
    at: Setting
    by: dict[str, list[People]] = field(default_factory=dict)

    def row(self, figure: str, of: Of, form: str = ".2f", goal: Goal | None = None) -> Row:
        """Medians over the rounds."""
        found = {arm: statistics.median(map(of, people)) for arm, people in self.by.items()}
        return Row(self.name, figure, found, form, goal)

    def ratio(self, figure: str, of: Mapping[str, float], arm: str, form: str, goal: Goal | None = None) -> Row:
        """Of each arm's figure to that arm's."""
        return Row(self.name, figure, {one: value / of[arm] for one, value in of.items()}, form, goal, is_ratio=True)


@dataclass(frozen=True)
class Workload:
    name: str
    play: Play
    rows: Callable[[Played], Iterator[Row]]
    arms: Sequence[str] = (FIRST_COME, FAIR)
    again: bool = False  # in each round, not in the first only
    alone: Play | None = None  # how it is played in that arm
    virtual: bool = True
    longer: float = 1.0  # than the others

    def setting(self, at: Setting) -> Setting:
        return replace(at, seconds=self.longer * at.seconds)

    def played_in(self, arm: str) -> Play:
        return self.alone if arm == ALONE and self.alone else self.play


async def together(*people: Coroutine[None, None, object]) -> None:
    await asyncio.gather(*people)


# FS1 ------------------------------------------------------------------------------------------------------------------
async def light_people(people: People, at: Setting) -> None:
    each = at.a_second(LIGHT_SHARE, at.light) / len(LIGHT)
    await together(*(people.sometimes(who, each, at.light, at.seconds) for who in LIGHT))


async def beside_a_heavy_one(people: People, at: Setting) -> None:
    await together(light_people(people, at), people.always(HEAVY, at.parallel, at.varied, at.seconds))


def rows_of_waits(played: Played) -> Iterator[Row]:
    start, end = played.at.inner
    waits = {
        share: played.row(f"light TTFT p{share * 100:.0f} s", wait_of(LIGHT, share, start, end), ".3f")
        for share in (0.5, 0.95, 0.99)
    }
    yield from waits.values()
    p99 = waits[0.99].of
    better = {arm: p99[FIRST_COME] / value for arm, value in p99.items()}
    yield Row(played.name, "light p99, better than first-come by", better, ".1f", at_least(100), is_ratio=True)
    yield played.ratio("light p99 ÷ alone", p99, ALONE, ".1f", at_most(3))
    every = {arm: people for arm, people in played.by.items() if arm != ALONE}
    busy = replace(played, by=every).row("served a second, of everybody", lambda p: throughput(p, start, end), ".0f")
    yield busy
    yield played.ratio("throughput ÷ first-come on W seats", busy.of, ON_W, ".3f", at_least(0.99))
    yield played.ratio("throughput ÷ first-come: the price of the kept seats", busy.of, FIRST_COME, ".3f")


def wait_of(who: Collection[str], share: float, start: float, end: float) -> Of:
    return lambda people: percentile(people.waits(who, start, end), share)


def throughput(people: People, start: float, end: float) -> float:
    """Weighted tokens a second."""
    return sum(people.service(who, start, end) for who in PEOPLE) / (end - start)


# FS2, FS3 -------------------------------------------------------------------------------------------------------------
A, B = HEAVY, LIGHT[0]


async def two_who_want_more(people: People, at: Setting, shapes: Sequence[Shape] = (), *, stay: bool = False) -> None:
    a, b = shapes or (at.shape, at.shape)
    await together(
        people.always(A, 2 * at.seats, a, at.seconds, stay=stay),
        people.always(B, 4 * at.seats, b, at.seconds, stay=stay),
    )


async def mirrored(people: People, at: Setting) -> None:
    await two_who_want_more(people, at, (Shape.of(at.long // 4, at.long), Shape.of(at.long, at.long // 4)))


def rows_of_two(played: Played, cost: Callable[[Setting], int]) -> Iterator[Row]:
    """`cost`: of the longest prompt and the longest answer."""
    start, end = EDGE * played.at.seconds, played.at.seconds
    request = cost(played.at)
    figure = f"service difference ÷ cost of a request ({request}), at most"
    yield played.row(figure, lambda people: furthest(people, start, end) / request, ".2f", at_most(1))
    yield played.row("Jain", lambda people: evenness(people, start, end), ".4f", at_least(0.999))


def apart(people: People, start: float, end: float) -> float:
    """The difference of what two were served in a time."""
    return abs(people.service(A, start, end) - people.service(B, start, end))


def furthest(people: People, start: float, end: float) -> float:
    return max(apart(people, start, start + second) for second in range(1, int(end - start) + 1))


def evenness(people: People, start: float, end: float) -> float:
    return jain([people.service(who, start, end) for who in (A, B)])


# FS4 to FS8 -----------------------------------------------------------------------------------------------------------
async def on_and_off(people: People, at: Setting) -> None:
    """One all the time; another in every second quarter, with an eighth of the engine over all."""
    quarter, each = at.seconds / 4, at.a_second(0.25, at.shape)
    bursts = (people.sometimes(B, each, at.shape, (nth + 1) * quarter, nth * quarter) for nth in (1, 3))
    await together(people.always(A, at.parallel, at.shape, at.seconds), *bursts)


def rows_of_bursts(played: Played) -> Iterator[Row]:
    yield played.row("p99 of who comes and goes, s", wait_of([B], 0.99, 0, played.at.seconds), ".3f")


WEIGHTS = dict(zip(PEOPLE, (1.0, 2.0, 3.0, 4.0), strict=False))


async def weighed(people: People, at: Setting) -> None:
    await people.weigh(WEIGHTS)
    await together(*(people.always(who, 2 * at.seats, at.shape, at.seconds) for who in WEIGHTS))
    await people.weigh(dict.fromkeys(WEIGHTS, 1.0))


def rows_of_weights(played: Played) -> Iterator[Row]:
    """Whoever comes first takes all seats; until the others have caught up it takes a while: that is cut."""
    start, end = played.at.seconds / 2, played.at.seconds

    def error(people: People) -> float:
        each = [people.service(who, start, end) / weight for who, weight in WEIGHTS.items()]
        return max(abs(one * len(each) / sum(each) - 1) for one in each)

    yield played.row("a share's error in the second half, at most", error, ".1%", at_most(0.01, "≤ 1 %"))


async def after_idle(people: People, at: Setting) -> None:
    """One with less than there is; half-time another, who was away."""
    stays = people.always(A, max(1, at.seats - 2), at.shape, at.seconds)
    await together(stays, people.always(B, at.parallel, at.shape, at.seconds, at.seconds / 2))


def rows_after_idle(played: Played) -> Iterator[Row]:
    start, end = 0.6 * played.at.seconds, played.at.seconds

    def share(people: People) -> float:
        stayed = people.service(A, start, end)
        return stayed / (stayed + people.service(B, start, end))

    yield played.row("share of who stayed", share, ".2f", at_least(0.45))


async def batch(people: People, at: Setting) -> None:
    waits = replace(at.shape, flex=True)
    desk = people.always(B, 2 * at.seats, at.shape, at.seconds)
    await together(desk, people.always(A, 4 * at.seats, waits, at.seconds, at.seconds / 10))


def rows_of_batch(played: Played) -> Iterator[Row]:
    start, end = 0.4 * played.at.seconds, played.at.seconds

    def share(people: People) -> float:
        flex = people.service(A, start, end)
        return flex / (flex + people.service(B, start, end))

    yield played.row("share of the batch work beside a full desk (wanted: 0.10)", share, ".3f")


async def a_crowd(people: People, at: Setting) -> None:
    """25 people whose rates fall like 1/rank; together a tenth more than the engine can do."""
    ranks = {who: 1 / rank for rank, who in enumerate(PEOPLE, 1)}
    each = at.a_second(1.1, at.shape) / sum(ranks.values())
    await together(*(people.sometimes(who, each * part, at.shape, at.seconds) for who, part in ranks.items()))


def rows_of_a_crowd(played: Played) -> Iterator[Row]:
    for share in (0.5, 0.99):
        figure = f"TTFT of the lighter half, p{share * 100:.0f} s"
        yield played.row(figure, wait_of(PEOPLE[12:], share, *played.at.inner), ".3f")


# FS9 to FS11 ----------------------------------------------------------------------------------------------------------
async def crash(people: People, at: Setting) -> None:
    await together(two_who_want_more(people, at, stay=True), people.kill(at.seconds / 3))


def rows_of_a_crash(played: Played) -> Iterator[Row]:
    start, end = played.at.seconds / 2, played.at.seconds
    yield played.row("Jain of the time after", lambda people: evenness(people, start, end), ".4f", at_least(0.999))
    untold = 2 * played.at.rate * 0.25
    figure = "charged less what the engine did, tokens"
    goal = at_most(untold, f"≤ {untold:.0f} (0.25 s)")
    yield played.row(figure, lambda people: abs(people.off()), ".0f", goal)


TRICKS: Mapping[str, Callable[[Setting], Shape]] = {
    "many tiny": lambda at: Shape.of(8, 8),
    "asks for much": lambda at: replace(at.shape, says=1024),
    "leaves early": lambda at: Shape.of(at.long, 4, at.short),
    "hides its length": lambda at: Shape.of(at.long, 3 * at.short),
}


async def trick(people: People, at: Setting, *, shape: Callable[[Setting], Shape]) -> None:
    """Somebody with ten keys and 64 requests beside somebody honest."""
    sly = people.always(A, 64, shape(at), at.seconds)
    await together(sly, people.always(B, 24, at.shape, at.seconds))


def rows_of_a_trick(played: Played) -> Iterator[Row]:
    start, end = EDGE * played.at.seconds, played.at.seconds

    def gain(people: People) -> float:
        sly = people.service(A, start, end)
        return sly / (sly + people.service(B, start, end)) - 0.5

    yield replace(played.row("more than half by", gain, "+.2%", at_most(0.01, "≤ 1 %")), is_ratio=True)


async def four_alike(people: People, at: Setting) -> None:
    who = PEOPLE[:4]
    await together(*(people.always(one, at.parallel // 2, at.shape, at.seconds) for one in who))


def rows_of_estimates(played: Played) -> Iterator[Row]:
    def off(people: People) -> float:
        return percentile([abs(told / real - 1) for told, real in people.estimates() if told >= 1], 0.8)

    yield played.row("told ÷ real of waits told as 1 s or more, p80 off by", off, ".0%", at_most(0.3, "≤ 30 %"))


WORKLOADS = (
    Workload(
        "FS1 one with many jobs, ten light with 15 %",
        beside_a_heavy_one,
        rows_of_waits,
        (DIRECT, FIRST_COME, ON_W, FAIR, ALONE),
        again=True,
        alone=light_people,
    ),
    Workload(
        "FS2 two, demand 1:2",
        two_who_want_more,
        partial(rows_of_two, cost=lambda at: at.long + 2 * at.short),
        (DIRECT, FIRST_COME, FAIR),
        again=True,
    ),
    Workload("FS3 two, mirrored shapes", mirrored, partial(rows_of_two, cost=lambda at: 3 * at.long)),
    Workload("FS4 on and off", on_and_off, rows_of_bursts),
    Workload("FS5 weights 1:2:3:4", weighed, rows_of_weights, (FAIR,)),
    Workload("FS6 one comes who was away", after_idle, rows_after_idle, again=True),
    Workload("FS7 batch work", batch, rows_of_batch, (FAIR,)),
    Workload("FS8 25 people, Zipf, 110 %", a_crowd, rows_of_a_crowd),
    Workload("FS9 the gateway is killed", crash, rows_of_a_crash, (FAIR,), virtual=False),
    *(
        Workload(f"FS10 {name}", partial(trick, shape=shape), rows_of_a_trick, (FAIR,), again=True, longer=2)
        for name, shape in TRICKS.items()
    ),
    Workload("FS11 told waits", four_alike, rows_of_estimates, (FAIR,)),
)


# pictures -------------------------------------------------------------------------------------------------------------
def pictures(played: Played) -> Iterator[Chart]:
    """Of the first round of FS1 and FS2."""
    first = {arm: people[0] for arm, people in played.by.items()}
    if played.name == WORKLOADS[0].name:
        waits = {arm: spread(people.waits(LIGHT, *played.at.inner)) for arm, people in first.items()}
        yield Chart("FS1: what light people wait for the first token", "% of them", "s", waits, log=True)
    if played.name == WORKLOADS[1].name:
        start, last = int(EDGE * played.at.seconds), int(played.at.seconds)
        lines: dict[str, Points] = {
            arm: [(end, apart(people, start, end)) for end in range(start + 1, last)] for arm, people in first.items()
        }
        bound = 2 * (played.at.long + 2 * played.at.seats * played.at.short) + AHEAD
        lines["bound"] = [(start + 1, bound), (last - 1, bound)]
        yield Chart("FS2: how far two are apart who always want more", "seconds", "weighted tokens", lines)


def spread(waits: Sequence[float]) -> Points:
    ordered = sorted(waits)
    return [(100 * (nth + 0.5) / len(ordered), wait) for nth, wait in enumerate(ordered)]
