"""`bench fairness --simulate`: workloads FS1 to FS11 in virtual time on the model of the line; the other arm is one
line for all.

Six minutes each, the first one cut; medians over the seeds, the worst where a row says so. Knows no Redis and no real
engine: what stands here is what the rules give before an engine that is a rule of three.
"""

import asyncio
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.admission.line import KEPT_PART, Capacity
from tests.bench.chart import Chart, Points
from tests.line_model import AHEAD, DESK, Model, ModelLine
from tests.line_simulation import STEP_MS, Job, World, jain, percentile

SEATS, KEPT = 10, 2  # the gateway's own rule: one in five
END_MS, WARM_MS = 360_000, 60_000
LAST_MS = END_MS - 30_000  # who comes later may still wait at the end
WINDOW_MS = 60_000
READS_MS = 2_000  # a light person reads an answer, before the next question
REQUEST_COST = 256 + 2 * 256  # of FS2, as VTC counts it
LIGHT = [f"light{n}" for n in range(10)]


@dataclass(frozen=True, slots=True)
class Seats(Capacity):
    """With another number of kept seats than the gateway's rule gives."""

    keep: int = 0

    @property
    def kept(self) -> int:
        return self.keep


FAIR = Seats(SEATS, keep=KEPT)


@dataclass(frozen=True)
class Row:
    """One figure. `reached` None: there is no goal."""

    workload: str
    figure: str
    goal: str
    first_come: str
    fair: str
    reached: bool | None = None

    def __str__(self) -> str:
        reached = {None: "–", True: "yes", False: "**no**"}[self.reached]
        return f"| {self.workload} | {self.figure} | {self.goal} | {self.first_come} | {self.fair} | {reached} |"


@dataclass(frozen=True)
class Report:
    rows: Sequence[Row]
    sweep: Sequence[str]  # lines of a table
    charts: Sequence[Chart]


def simulate(seeds: int) -> Report:
    everything = range(1, seeds + 1)
    sweep, charts = kept_seats(everything)
    return Report([row for case in CASES for row in case(everything)], sweep, [*charts, apart_chart()])


# the parts of a workload ----------------------------------------------------------------------------------------------
Maker = Callable[..., Callable[[], Job]]


def new(capacity: Capacity = FAIR, *, first_come: bool = False) -> World:
    return World(ModelLine(Model(), "gw_one", longest_wait_seconds=1e6), capacity, first_come)


def first_come(seats: int = SEATS) -> World:
    """One line for all, no seat kept: what an engine does by itself."""
    return new(Seats(seats), first_come=True)


def ran(world: World, until: float = END_MS) -> World:
    return asyncio.run(world.run(until))


def about(seed: int, person: str, prompt: int, output: int, **more: object) -> Callable[[], Job]:
    """Requests like this one, a quarter more or less."""
    chance = random.Random(f"{seed} {person}")
    vary = lambda mean: chance.randint(mean - mean // 4, mean + mean // 4)  # noqa: E731
    return lambda: Job(person, vary(prompt), vary(output), **more)  # type: ignore[arg-type]


def same(_: int, person: str, prompt: int, output: int, **more: object) -> Callable[[], Job]:
    """Requests that are all equal, as in the papers."""
    return lambda: Job(person, prompt, output, **more)  # type: ignore[arg-type]


def poisson(
    world: World, chance: random.Random, person: str, a_second: float, make: Callable[[], Job], pause_ms: float = 0
) -> None:
    """At so many a second; `pause_ms` of it lie between two in any case."""
    at, rate = 0.0, 1 / (1000 / a_second - pause_ms)
    while (at := at + pause_ms + chance.expovariate(rate)) < END_MS:
        world.at(at, make())


def windows() -> Iterable[tuple[int, int]]:
    return ((start, start + WINDOW_MS) for start in range(WARM_MS, END_MS - WINDOW_MS + 1, WINDOW_MS))


def apart(world: World, one: str, other: str, start: float = WARM_MS) -> float:
    """How much the difference of what two were served moved since the start, at most."""
    at = [served.get(one, 0.0) - served.get(other, 0.0) for now, served in world.history if now >= start]
    return max(abs(value - at[0]) for value in at)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def throughput(world: World) -> float:
    """Weighted tokens a second, after the warm-up."""
    return sum(world.service(person, WARM_MS) for person in world.served) / ((END_MS - WARM_MS) / 1000)


# FS1 ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Office:
    """One with so many parallel requests, ten who ask now and then: `share` of what the engine can write."""

    name: str
    seats: int = SEATS
    parallel: int = 32
    share: float = 0.15
    pause_ms: float = READS_MS

    def fair(self) -> World:
        return new(Seats(self.seats, keep=self.seats // KEPT_PART))

    def first_come(self) -> World:
        return first_come(self.seats)

    def first_come_on_w(self) -> World:
        return first_come(self.seats - self.seats // KEPT_PART)

    def ran(self, world: World, seed: int, *, heavy: bool = True) -> World:
        if heavy:
            world.closed("heavy", self.parallel, about(seed, "heavy", 256, 128))
        for person in LIGHT:
            chance = random.Random(f"{seed} {person}")
            make = lambda person=person, chance=chance: Job(person, chance.randint(64, 256), chance.randint(32, 64))  # noqa: E731
            poisson(world, chance, person, self.share * engine_rate(self.seats) / 48 / len(LIGHT), make, self.pause_ms)
        return ran(world)


OFFICES = (
    Office("FS1 32 jobs, ten light with 15 % of the engine"),
    Office("FS1 the same, light people ask twice at once, too", pause_ms=0),
    Office("FS1 20 seats, 64 jobs, ten light with 5 %", seats=20, parallel=64, share=0.05),
)


def engine_rate(seats: int = SEATS) -> float:
    """Tokens a second that the engine writes with all seats taken by FS1's heavy requests."""
    step = 10.0 + 0.25 * seats
    return seats * 1000 / (step + seats * 256 / 8 / 128)


def light_wait(worlds: Sequence[World], share: float) -> float:
    return median(percentile(world.waits(*LIGHT, after=WARM_MS, before=LAST_MS), share) for world in worlds)


def beside_a_heavy_one(seeds: Sequence[int]) -> Iterator[Row]:
    for office in OFFICES:
        alone = [office.ran(office.fair(), seed, heavy=False) for seed in seeds]
        first, less, fair = (
            [office.ran(make(), seed) for seed in seeds]
            for make in (office.first_come, office.first_come_on_w, office.fair)
        )
        shown = [
            " / ".join(f"{light_wait(arm, share):.3f}" for share in (0.5, 0.95, 0.99)) for arm in (alone, first, fair)
        ]
        yield Row(office.name, f"light TTFT p50 / p95 / p99 s (alone {shown[0]})", "–", *shown[1:])
        waits = [light_wait(arm, 0.99) for arm in (alone, first, fair)]
        better, times = waits[1] / waits[2], waits[2] / waits[0]
        yield Row(office.name, "light p99, better than first-come by", "≥ 100", "1", f"{better:.0f}", better >= 100)
        yield Row(office.name, "light p99 ÷ alone", "≤ 3", f"{waits[1] / waits[0]:.0f}", f"{times:.1f}", times <= 3)
        whole, w, ours = (median(map(throughput, arm)) for arm in (first, less, fair))
        seats = office.seats - office.seats // KEPT_PART
        yield Row(
            office.name, f"throughput ÷ first-come on {seats} seats", "≥ 0.99", "1", f"{ours / w:.3f}", ours / w >= 0.99
        )
        what = f"throughput ÷ first-come on all {office.seats}: the price of the kept"
        yield Row(office.name, what, "–", "1", f"{ours / whole:.3f}")


def kept_seats(seeds: Sequence[int]) -> tuple[list[str], list[Chart]]:
    """The sweep that chose how many seats are kept, in both offices whose light people read."""
    columns = ("kept", "light TTFT p50 s", "p95 s", "p99 s", "throughput ÷ first-come on all")
    lines = [f"| {' | '.join(('office', *columns))} |", "|---|---|---|---|---|---|"]
    waits: dict[str, Points] = {}
    rates: dict[str, Points] = {}
    for office in (OFFICES[0], OFFICES[2]):
        whole = [office.ran(office.first_come(), seed) for seed in seeds]
        swept = [0, *range(1, office.seats // 2, office.seats // 10)]
        at, rate = [], []
        for keep in swept:
            worlds = [office.ran(new(Seats(office.seats, keep=keep)), seed) for seed in seeds]
            found = [light_wait(worlds, share) for share in (0.5, 0.95, 0.99)]
            part = median(map(throughput, worlds)) / median(map(throughput, whole))
            cells = (f"{office.seats} seats", keep, *(f"{value:.3f}" for value in found), f"{part:.3f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
            at.append((100 * keep / office.seats, found[2]))
            rate.append((100 * keep / office.seats, part))
        waits |= {f"{office.seats} seats": at}
        waits |= {f"{office.seats} seats, first-come": [(x, light_wait(whole, 0.99)) for x, _ in at]}
        rates |= {f"{office.seats} seats": rate}
    across = "kept seats, % of all"
    return lines, [
        Chart("What light people wait for the first token, p99", across, "s", waits, log=True),
        Chart("What the kept seats cost", across, "throughput ÷ first-come", rates),
    ]


# FS2, FS3 -------------------------------------------------------------------------------------------------------------
SAME, MIRRORED = ((256, 256), (256, 256)), ((64, 256), (256, 64))
PAIRS = {
    "FS2 two, demand 1:2": (SAME, same),
    "FS2 lengths vary by a quarter": (SAME, about),
    "FS3 two, mirrored shapes": (MIRRORED, about),
}


def pair(world: World, seed: int, shapes: Sequence[tuple[int, int]] = SAME, made: Maker = same) -> World:
    for person, shape, parallel in zip("ab", shapes, (24, 48), strict=True):
        world.closed(person, parallel, made(seed, person, *shape))
    return ran(world)


def two_who_want_more(seeds: Sequence[int]) -> Iterator[Row]:
    for name, (shapes, made) in PAIRS.items():
        first, fair = ([pair(make(), seed, shapes, made) for seed in seeds] for make in (first_come, new))
        off = [max(apart(world, "a", "b") for world in worlds) / REQUEST_COST for worlds in (first, fair)]
        figure = "service difference ÷ cost of a request (768), at most"
        yield Row(name, figure, "≤ 1", f"{off[0]:.1f}", f"{off[1]:.2f}", off[1] <= 1)
        even = [
            min(jain([world.service(who, *window) for who in "ab"]) for world in worlds for window in windows())
            for worlds in (first, fair)
        ]
        yield Row(name, "Jain of 60 s, the least", "≥ 0.999", f"{even[0]:.4f}", f"{even[1]:.4f}", even[1] >= 0.999)


def apart_chart() -> Chart:
    """FS2 over time, against the bound of docs/fairness.md."""
    lines: dict[str, Points] = {}
    for name, make in (("first-come", first_come), ("FQ1", new)):
        world = pair(make(), 1)
        lines[name] = [
            (now / 1000, abs(served.get("a", 0) - served.get("b", 0))) for now, served in world.history[::16]
        ]
    bound = 2 * (256 + 2 * SEATS * 256) + AHEAD
    lines["bound"] = [(0, bound), (END_MS / 1000, bound)]
    return Chart("How far two are apart who always want more", "seconds", "weighted tokens", lines)


# FS4 to FS8 -----------------------------------------------------------------------------------------------------------
def on_and_off(seeds: Sequence[int]) -> Iterator[Row]:
    """One always with 32 parallel requests, one with 8 every second minute."""

    def made(world: World, seed: int) -> World:
        world.closed("steady", 32, about(seed, "steady", 256, 128))
        make = about(seed, "bursts", 256, 128)
        for start in range(0, END_MS, 120_000):
            for nth in range(60):
                world.at(start + nth * 1000, make())
        return ran(world)

    waits = [
        [percentile(made(make(), seed).waits("bursts", before=LAST_MS), 0.99) for seed in seeds]
        for make in (first_come, new)
    ]
    first, fair = map(median, waits)
    yield Row("FS4 on and off each minute", "p99 of who comes and goes, s", "–", f"{first:.2f}", f"{fair:.2f}")


def weights(seeds: Sequence[int]) -> Iterator[Row]:
    """Whoever comes first takes all seats; until the others have caught up it takes a minute or two: they are cut."""

    def off(world: World, seed: int, made: Maker) -> float:
        for weight in (1, 2, 3, 4):
            world.closed(f"w{weight}", 24, made(seed, f"w{weight}", 256, 256, weight=weight))
        ran(world)
        errors = []
        for window in [*windows()][1:]:
            each = [world.service(f"w{weight}", *window) / weight for weight in (1, 2, 3, 4)]
            errors.append(max(abs(one * 4 / sum(each) - 1) for one in each))
        return max(errors)

    for name, made in (("FS5 weights 1:2:3:4", same), ("FS5 lengths vary by a quarter", about)):
        worst = max(off(new(), seed, made) for seed in seeds)
        yield Row(name, "a share's error in 60 s, at most", "≤ 1 %", "–", f"{worst:.1%}", worst <= 0.01)


def after_idle(seeds: Sequence[int]) -> Iterator[Row]:
    """One who asks for less than there is for three minutes, then another with 32 parallel requests."""

    def made(world: World, seed: int, before: int) -> World:
        world.closed("stays", 24 if before else 8, about(seed, "stays", 128, 128))
        world.closed("comes", before, about(seed, "comes", 128, 128))
        world.closed("comes", 32, about(seed + 1, "comes", 128, 128), start=END_MS / 2)
        return ran(world)

    for what, before in (("that was away", 0), ("that asked for little", 3)):
        first, fair = ([made(make(), seed, before) for seed in seeds] for make in (first_come, new))
        from_then = END_MS / 2 + 5_000
        share = [
            min(
                w.service("stays", from_then) / (w.service("stays", from_then) + w.service("comes", from_then))
                for w in ws
            )
            for ws in (first, fair)
        ]
        yield Row(
            f"FS6 one comes {what}",
            "share of who stayed",
            "≥ 0.45",
            f"{share[0]:.2f}",
            f"{share[1]:.2f}",
            share[1] >= 0.45,
        )


def batch(seeds: Sequence[int]) -> Iterator[Row]:
    def made(world: World, seed: int, *, flex: bool) -> World:
        world.closed("batch", 40, about(seed, "batch", 256, 128, flex=flex))
        world.closed("desk", 24, about(seed, "desk", 256, 128), start=WARM_MS / 2)
        return ran(world)

    worlds = [made(new(), seed, flex=True) for seed in seeds]
    shares = [w.service("batch", WARM_MS) / (w.service("batch", WARM_MS) + w.service("desk", WARM_MS)) for w in worlds]
    yield Row("FS7 batch work beside a full desk", "share of the batch work", "0.10", "–", f"{median(shares):.3f}")


def a_crowd(seeds: Sequence[int]) -> Iterator[Row]:
    """25 people whose rates fall like 1/rank; together a tenth more than the engine can do."""

    def made(world: World, seed: int) -> World:
        ranks = {f"p{rank:02}": 1 / rank for rank in range(1, 26)}
        for person, part in ranks.items():
            chance = random.Random(f"{seed} {person}")
            a_second = 1.1 * engine_rate() / 128 * part / sum(ranks.values())
            poisson(world, chance, person, a_second, about(seed, person, 256, 128))
        return ran(world)

    light = [f"p{rank:02}" for rank in range(13, 26)]
    first, fair = (
        [made(make(), seed).waits(*light, after=WARM_MS, before=LAST_MS) for seed in seeds]
        for make in (first_come, new)
    )
    shown = [
        " / ".join(f"{median(percentile(w, share) for w in ws):.2f}" for share in (0.5, 0.99)) for ws in (first, fair)
    ]
    yield Row("FS8 25 people, Zipf, 110 %", "TTFT of the lighter half, p50 / p99 s", "–", *shown)


# FS9 to FS11 ----------------------------------------------------------------------------------------------------------
def crash(seeds: Sequence[int]) -> Iterator[Row]:
    """A gateway dies in the middle of FS2; another goes on with what it had. What had not been told is not charged."""

    async def made(seed: int) -> tuple[float, float]:
        world, model = new(), Model()
        world.line = ModelLine(model, "gw_one", longest_wait_seconds=1e6)
        for person, parallel in (("a", 24), ("b", 48)):
            world.closed(person, parallel, about(seed, person, 256, 256))
        await world.run(END_MS / 2)
        await world.die(ModelLine(model, "gw_two", longest_wait_seconds=1e6))
        await world.run(END_MS)
        after = END_MS / 2 + WARM_MS / 2
        ahead = sum(request.charged - request.prompt - 2 * request.produced for request in model.seated.values())
        off = abs(model.given[DESK] - ahead - sum(world.served.values()))
        return off, jain([world.service(who, after) for who in "ab"])

    found = [asyncio.run(made(seed)) for seed in seeds]
    off, even = max(one for one, _ in found), min(one for _, one in found)
    told = 2 * SEATS * 2 * STEP_MS / 10  # what was written since the last report: at the death, and now
    what = "all that is charged less all that was served (untold: 0.25 s)"
    yield Row("FS9 a gateway dies", what, f"≤ {told:.0f}", "–", f"{off:.0f}", off <= told)
    yield Row("FS9 a gateway dies", "Jain of the time after", "≥ 0.999", "–", f"{even:.5f}", even >= 0.999)


TRICKS = {
    "many tiny": Job("sly", 8, 8),
    "asks for much": Job("sly", 256, 128, most=4096),
    "leaves early": Job("sly", 256, 4),
    "hides its length": Job("sly", 256, 384),
}


def tricks(seeds: Sequence[int]) -> Iterator[Row]:
    for trick, job in TRICKS.items():
        gains = []
        for seed in seeds:
            world = new()
            world.closed("sly", 64, lambda job=job: job)  # type: ignore[misc]
            world.closed("fair", 24, about(seed, "fair", 256, 128))
            ran(world)
            sly, fair = world.service("sly", WARM_MS), world.service("fair", WARM_MS)
            gains.append(sly / (sly + fair) - 0.5)
        gain = max(gains)
        yield Row("FS10 tricks", f"{trick}: more than half by", "≤ 1 %", "–", f"{gain:+.2%}", gain <= 0.01)


def estimates(seeds: Sequence[int]) -> Iterator[Row]:
    async def made(seed: int) -> list[float]:
        world = new()
        for person in "abcd":
            world.closed(person, 16, about(seed, person, 256, 128))
        for at in range(WARM_MS, END_MS // 2, 10_000):
            await world.run(at)
            await world.look()
        await world.run(END_MS)
        return [
            abs(told * 1000 / (one.seated - at) - 1) for one, told, at in world.told if one.seated and one.seated > at
        ]

    off = median(percentile(asyncio.run(made(seed)), 0.8) for seed in seeds)
    yield Row("FS11 told waits", "told ÷ real, p80 off by", "≤ 30 %", "–", f"{off:.0%}", off <= 0.3)


CASES = (
    beside_a_heavy_one,
    two_who_want_more,
    on_and_off,
    weights,
    after_idle,
    batch,
    a_crowd,
    crash,
    tricks,
    estimates,
)
