"""`bench fairness`: FS1 and FS2 on a real worker, three arms in turn in one run, and the simulation beside them.

direct      the engine alone: first come, first served
first-come  through the gateway, everybody with one key: one person's line
FQ1         through the gateway, everybody as themselves

The simulation gets four figures of this worker, measured before: how long a step takes, what each seat and each token
of a prompt add to it, and how many tokens of prompts a step may read. Knows the crowd and the stack.
"""

import asyncio
import json
import random
import statistics
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from gateway.admission.line import Capacity
from tests.bench.crowd import Asked, Crowd
from tests.bench.stack import Stack, stack
from tests.line_model import Model, ModelLine
from tests.line_simulation import Engine, Job, World, percentile

DIRECT, FIRST_COME, FAIR = ARMS = ("direct", "first-come", "FQ1")
LIGHT = [f"light{number}" for number in range(6)]
PEOPLE = ["heavy", *LIGHT]
PARALLEL = 32
LIGHT_SHARE = 0.15  # of the tokens that the engine can write
PROMPT, OUTPUT = 128, 64
LIGHT_PROMPT, LIGHT_OUTPUT = (32, 128), (16, 32)
LONG = 1024  # tokens of a prompt whose reading is timed
CALIBRATE_SECONDS, SECONDS, PAIR_SECONDS, WARM_SECONDS = 12.0, 50.0, 30.0, 8.0
SHARES = (0.5, 0.95, 0.99)


@dataclass
class Found:
    """Of each arm, a figure for each round."""

    waits: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # a second, of everybody
    apart: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    even: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def wait(self, arm: str, share: float) -> float:
        """Of all rounds' light people together, in seconds."""
        return percentile([wait for one in self.waits[arm] for wait in one], share)


@dataclass(frozen=True)
class Calibrated:
    engine: Engine
    rate: float  # tokens a second that it writes with all seats taken
    longer: float  # tokens of a prompt for each that was asked for: the template's, and words that are more than one


def on_engine(upstream: str, seats: int, rounds: int) -> Iterator[str]:
    more = {"DESKMATE_QUEUE_PER_PERSON": "1024"}
    with stack(upstream, seats=seats, people=len(PEOPLE), more=more) as on:
        calibrated, found = asyncio.run(measured(on, seats, rounds))
    simulated = {arm: simulate(calibrated, seats, arm) for arm in (FIRST_COME, FAIR)}
    engine = calibrated.engine
    reading = 1000 * engine.prompt_tokens_a_ms
    yield f"A real worker with {seats} seats, {Capacity(seats).kept} of them kept: {calibrated.rate:.0f} tokens/s when"
    yield f"all are taken; a step {engine.overhead_ms:.1f} ms and {engine.token_ms:.2f} ms for each seat, prompts are"
    yield f"read at {reading:.0f} tokens/s, {engine.step_tokens} of them in a step. FS1: one with {PARALLEL} jobs,"
    yield f"{len(LIGHT)} light people with {LIGHT_SHARE:.0%}; {rounds} rounds of {SECONDS:.0f} s, FS2"
    yield f"{PAIR_SECONDS:.0f} s, the first {WARM_SECONDS:.0f} s of each cut; arms in turn."
    yield ""
    yield "| what | direct | first-come | FQ1 | simulated first-come | simulated FQ1 |"
    yield "|---|---|---|---|---|---|"
    yield from rows(found, simulated)
    yield ""
    yield from ratios(found, simulated)


def rows(found: Found, simulated: dict[str, World]) -> Iterator[str]:
    alone = " / ".join(f"{found.wait('alone', share):.2f}" for share in SHARES)
    for share in SHARES:
        told = [found.wait(arm, share) for arm in ARMS]
        told += [percentile(light_waits(world), share) for world in simulated.values()]
        of_all = f" (alone {alone})" if share == SHARES[0] else ""
        yield f"| FS1 light TTFT p{share * 100:.0f} s{of_all} | {' | '.join(f'{value:.2f}' for value in told)} |"
    rates = [statistics.median(found.tokens[arm]) for arm in ARMS] + [written(world) for world in simulated.values()]
    yield f"| FS1 tokens/s of everybody | {' | '.join(f'{value:.0f}' for value in rates)} |"
    for what, values, digits in (
        ("FS2 service difference ÷ cost of a request, at most", found.apart, 2),
        ("FS2 Jain", found.even, 4),
    ):
        told_of_arms = " | ".join(f"{statistics.median(values[arm]):.{digits}f}" for arm in ARMS)
        yield f"| {what} | {told_of_arms} | – | – |"


def ratios(found: Found, simulated: dict[str, World]) -> Iterator[str]:
    rates = {arm: statistics.median(found.tokens[arm]) for arm in ARMS}
    p99 = {arm: found.wait(arm, 0.99) for arm in (*ARMS, "alone")}
    yield (
        f"Light p99 against first-come ÷ {p99[FIRST_COME] / p99[FAIR]:.0f}, against the engine alone "
        f"÷ {p99[DIRECT] / p99[FAIR]:.0f}; × {p99[FAIR] / p99['alone']:.1f} of what it is without the heavy one. "
        f"Throughput ÷ first-come on all seats {rates[FAIR] / rates[FIRST_COME]:.3f}."
    )
    off = [f"throughput {rates[arm] / written(world) - 1:+.0%}" for arm, world in simulated.items()]
    for arm, world in simulated.items():
        off += [
            f"{arm} p{s * 100:.0f} {found.wait(arm, s) / percentile(light_waits(world), s) - 1:+.0%}" for s in SHARES
        ]
    yield f"Measured against simulated: {', '.join(off)}."


# measured -------------------------------------------------------------------------------------------------------------
async def measured(on: Stack, seats: int, rounds: int) -> tuple[Calibrated, Found]:
    found, calibrated = Found(), await calibrate(on, seats)
    for number in range(rounds):
        for arm in ARMS[:: 1 if number % 2 == 0 else -1]:
            await heavy_and_light(on, arm, calibrated.rate, found)
            await pair(on, arm, found)
        await heavy_and_light(on, FAIR, calibrated.rate, found, alone=True)
    return calibrated, found


def crowd(http: aiohttp.ClientSession, on: Stack, arm: str) -> Crowd:
    own = {who: {"authorization": f"Bearer {key}"} for who, key in zip(PEOPLE, on.keys, strict=True)}
    headers = {DIRECT: {}, FIRST_COME: dict.fromkeys(PEOPLE, own["heavy"]), FAIR: own}
    return Crowd(http, on.model, headers[arm])


def session(on: Stack, arm: str) -> aiohttp.ClientSession:
    address = on.upstream if arm == DIRECT else on.gateway
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(f"http://{address}", connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def calibrate(on: Stack, seats: int) -> Calibrated:
    async with session(on, DIRECT) as http:
        people = crowd(http, on, DIRECT)
        await people.ask("heavy", PROMPT, OUTPUT)  # the first of all is slow
        single = statistics.median([pace(await people.ask("heavy", PROMPT, OUTPUT)) for _ in range(3)])
        long = [await people.ask("heavy", LONG, 2) for _ in range(3)]
        people = crowd(http, on, DIRECT)
        await people.always("heavy", 2 * seats, PROMPT, OUTPUT, CALIBRATE_SECONDS)
    reading = statistics.median(one.prompt / (1000 * ((one.first or 0) - one.came) - single) for one in long)
    rate = sum(len(one.tokens) for one in people.asked) / max(one.done or 0 for one in people.asked)
    prompt = statistics.mean(one.prompt for one in people.asked)
    # Of a request's time with all seats taken, what is not the reading of prompts are steps.
    step = (seats * 1000 * OUTPUT / rate - seats * prompt / reading) / OUTPUT
    each = max(0.0, (step - single) / (seats - 1))
    engine = Engine(single - each, each, reading, step_tokens(on))
    return Calibrated(engine, rate, prompt / PROMPT)


def pace(asked: Asked) -> float:
    """Milliseconds between two tokens."""
    return 1000 * (asked.tokens[-1] - asked.tokens[0]) / (len(asked.tokens) - 1)


def step_tokens(on: Stack) -> int:
    with urllib.request.urlopen(f"http://{on.upstream}/deskmate/plan", timeout=10) as plan:
        return int(json.loads(plan.read())["step_tokens"])


async def heavy_and_light(on: Stack, arm: str, rate: float, found: Found, *, alone: bool = False) -> None:
    async with session(on, arm) as http:
        people = crowd(http, on, arm)
        asking = [people.sometimes(who, a_second(rate), LIGHT_PROMPT, LIGHT_OUTPUT, SECONDS) for who in LIGHT]
        if not alone:
            asking.append(people.always("heavy", PARALLEL, PROMPT, OUTPUT, SECONDS))
        await asyncio.gather(*asking)
    _answered(people)
    found.waits["alone" if alone else arm].append(people.waits(set(LIGHT), WARM_SECONDS))
    if not alone:
        came = sum(WARM_SECONDS <= at < SECONDS for one in people.asked for at in one.tokens)
        found.tokens[arm].append(came / (SECONDS - WARM_SECONDS))


def a_second(rate: float) -> float:
    """Questions of each light person."""
    return LIGHT_SHARE * rate / (sum(LIGHT_OUTPUT) / 2) / len(LIGHT)


async def pair(on: Stack, arm: str, found: Found) -> None:
    """Two who always want more, one twice as much as the other."""
    async with session(on, arm) as http:
        people = crowd(http, on, arm)
        await asyncio.gather(
            people.always("heavy", 16, PROMPT, OUTPUT, PAIR_SECONDS),
            people.always(LIGHT[0], 32, PROMPT, OUTPUT, PAIR_SECONDS),
        )
    _answered(people)
    cost = statistics.mean(one.prompt for one in people.asked) + 2 * OUTPUT
    apart = []
    for end in range(int(WARM_SECONDS) + 1, int(PAIR_SECONDS)):
        served = [people.service(who, WARM_SECONDS, end) for who in PEOPLE[:2]]
        apart.append(abs(served[0] - served[1]) / cost)
    found.apart[arm].append(max(apart))
    a, b = (people.service(who, WARM_SECONDS, PAIR_SECONDS) for who in PEOPLE[:2])
    found.even[arm].append((a + b) ** 2 / (2 * (a * a + b * b)))


def _answered(people: Crowd) -> None:
    """A figure of answers that failed would be none."""
    if failed := [one for one in people.asked if one.status != 200]:
        raise RuntimeError(f"{len(failed)} of {len(people.asked)} requests were not answered, e.g. {failed[0].status}")


# simulated ------------------------------------------------------------------------------------------------------------
ROUNDS = 4  # as long as so many rounds, for a p99 of enough people


def simulate(calibrated: Calibrated, seats: int, arm: str) -> World:
    line = ModelLine(Model(), "gw_one", longest=1024, longest_wait_seconds=1e6)
    world = World(line, Capacity(seats), arm == FIRST_COME, calibrated.engine)
    longer = calibrated.longer
    world.closed("heavy", PARALLEL, lambda: Job("heavy", round(PROMPT * longer), OUTPUT))
    for who in LIGHT:
        chance = random.Random(who)
        at = 0.0
        while (at := at + 1000 * chance.expovariate(a_second(calibrated.rate))) < ROUNDS * SECONDS * 1000:
            world.at(at, Job(who, round(chance.randint(*LIGHT_PROMPT) * longer), chance.randint(*LIGHT_OUTPUT)))
    return asyncio.run(world.run(ROUNDS * SECONDS * 1000))


def light_waits(world: World) -> Sequence[float]:
    """Of those who came early enough to be answered before the end."""
    return world.waits(*LIGHT, after=1000 * WARM_SECONDS, before=world.now - 20_000)


def written(world: World) -> float:
    """Tokens of answers a second."""
    return sum(one.tokens for one in world.ran) / (world.now / 1000)
