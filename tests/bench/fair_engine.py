"""`bench fairness`: FS1 to FS11 on a real worker, all arms in turn in one run, and the same in virtual time beside it.

The simulation gets a few figures of this worker as the gateway reaches it, measured before: how long a step takes, what
each seat and each token of a prompt add to it, and how many tokens of prompts a step may read. Knows the stack; what is
played, and which figures that gives, is in `workloads.py`.
"""

import asyncio
import json
import statistics
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from gateway.admission.line import Capacity
from tests.bench.cancels import running
from tests.bench.crowd import Asked, Crowd, Headers, Shape
from tests.bench.stack import Stack, stack, total
from tests.bench.virtual_crowd import VirtualCrowd
from tests.bench.workloads import (
    ALONE,
    DIRECT,
    FAIR,
    FAST_MS,
    FIRST_COME,
    HEAVY,
    KEYS_OF_THE_HEAVY,
    ON_W,
    PEOPLE,
    WORKLOADS,
    Played,
    Setting,
    Workload,
)
from tests.line_model import Model, ModelLine
from tests.line_simulation import Engine, World

LONG = 1024  # tokens of a prompt whose reading is timed
CALIBRATE_SECONDS = 15.0
QUIET_SECONDS = 20.0  # until the engine has nothing left to do


@dataclass(frozen=True)
class Calibrated:
    engine: Engine
    rate: float  # tokens a second that it writes with all seats taken
    longer: float  # tokens of a prompt for each that was asked for: the template's, and words that are more than one
    long: int  # tokens of a long prompt, for an engine of this speed


@dataclass(frozen=True)
class Size:
    """How much of it: the full form is 90 seconds and 3 rounds. `only`: workloads whose names begin like that."""

    seats: int
    rounds: int
    seconds: float
    parallel: int
    only: Sequence[str] = ()

    def workloads(self) -> list[Workload]:
        return [one for one in WORKLOADS if not self.only or one.name.split()[0] in self.only]


@dataclass
class Guests(Crowd):
    """People of a real stack."""

    on: Stack = field(kw_only=True)
    before: tuple[float, float] = (0.0, 0.0)  # what the line and the engine had counted
    after: tuple[float, float] = (0.0, 0.0)

    async def weigh(self, weights: Mapping[str, float]) -> None:
        for who, weight in weights.items():
            command = ("user", "weight", f"bench{PEOPLE.index(who)}", f"{weight:g}")
            await asyncio.to_thread(self.on.command, *command)

    async def kill(self, at: float) -> None:
        await asyncio.sleep(at - self.now)
        await asyncio.to_thread(self.on.restart)

    def off(self) -> float:
        charged, done = (after - before for before, after in zip(self.before, self.after, strict=True))
        return charged - done


def counted(on: Stack) -> tuple[float, float]:
    """All that the line ever charged, and all that the engine ever did, in weighted tokens. The engine is idle."""
    with urllib.request.urlopen(f"http://{on.upstream}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    read = total(metrics, "prompt_tokens_total") - total(metrics, "prefix_cache_hits_total")
    charged = sum(float(one or 0) for one in on.redis_server.admin("HMGET", "dm:line:clock", "inter", "flex"))
    return charged, read + 2 * total(metrics, "generation_tokens_total")


@dataclass(frozen=True)
class Found:
    """What was played, really and in virtual time (that may have fewer arms)."""

    calibrated: Calibrated
    at: Setting
    pairs: Sequence[tuple[Workload, Played, Played]]


def on_engine(upstream: str, size: Size) -> Found:
    keys = [KEYS_OF_THE_HEAVY, *(1 for _ in PEOPLE[1:])]
    with stack(upstream, seats=size.seats, people=keys, more={"DESKMATE_QUEUE_PER_PERSON": "1024"}) as on:
        calibrated = asyncio.run(calibrate(on, size.seats))
        at = Setting(size.seats, calibrated.rate, size.seconds, size.parallel, calibrated.long)
        played = asyncio.run(measured(on, at, size))
    virtual = [simulated(workload, calibrated, at) for workload in size.workloads()]
    return Found(calibrated, at, list(zip(size.workloads(), played, virtual, strict=True)))


# measured -------------------------------------------------------------------------------------------------------------
async def measured(on: Stack, at: Setting, size: Size) -> list[Played]:
    everything = {workload: Played(workload.name, workload.setting(at)) for workload in size.workloads()}
    for number in range(size.rounds):
        for workload, played in everything.items():
            if number and not workload.again:
                continue
            for arm in workload.arms[:: 1 if number % 2 == 0 else -1]:
                print(f"round {number + 1}: {workload.name}, {arm}", file=sys.stderr, flush=True)
                played.by.setdefault(arm, []).append(await play(on, workload, arm, played.at, number))
    return list(everything.values())


async def play(on: Stack, workload: Workload, arm: str, at: Setting, seed: int) -> Guests:
    await until_quiet(on)
    on.redis_server.admin("DEL", "dm:line:light")  # for whom seats would be kept in an arm that knows one person only
    async with session(on, arm) as http:
        people = guests(http, on, arm, at.seats, seed)
        people.before = counted(on)
        await workload.played_in(arm)(people, at)
    await until_quiet(on)
    people.after = counted(on)
    return people


def guests(http: aiohttp.ClientSession, on: Stack, arm: str, seats: int, seed: int = 0) -> Guests:
    own: dict[str, Sequence[Headers]] = {
        who: [{"authorization": f"Bearer {key}"} for key in keys] for who, keys in zip(PEOPLE, on.keys_of, strict=True)
    }
    headers = own if arm in (FAIR, ALONE) else {} if arm == DIRECT else dict.fromkeys(PEOPLE, own[HEAVY][:1])
    gate = asyncio.Semaphore(seats - Capacity(seats).kept) if arm == ON_W else None
    return Guests(http, on.model, headers, seed, gate, on=on)


def session(on: Stack, arm: str) -> aiohttp.ClientSession:
    address = on.upstream if arm == DIRECT else on.gateway
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(f"http://{address}", connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def until_quiet(on: Stack) -> None:
    """Nobody sits and nobody waits any more."""
    async with asyncio.timeout(QUIET_SECONDS), aiohttp.ClientSession() as http:
        while on.redis_server.admin("HLEN", "dm:line:requests") or await running(http, on):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def calibrate(on: Stack, seats: int) -> Calibrated:
    async with session(on, FIRST_COME) as http:
        people = guests(http, on, FIRST_COME, seats)
        await people.ask(HEAVY, LONG, 64)  # the first of all is slow
        single = statistics.median([pace(await people.ask(HEAVY, 128, 64)) for _ in range(3)])
        long = [await people.ask(HEAVY, LONG, 2) for _ in range(3)]
        prompt = 256 if single <= FAST_MS else 128
        output = prompt // 2
        people = guests(http, on, FIRST_COME, seats)
        await people.always(HEAVY, 2 * seats, Shape.of(prompt, output), CALIBRATE_SECONDS)
    reading = statistics.median(one.prompt / (1000 * ((one.first or 0) - one.came) - single) for one in long)
    whole = [one for one in people.asked if one.done]
    length = statistics.mean(one.prompt for one in whole)
    start = CALIBRATE_SECONDS / 3
    served = people.service(HEAVY, start, CALIBRATE_SECONDS) / (CALIBRATE_SECONDS - start)
    rate = served / (length + 2 * output) * output
    # Of a request's time with all seats taken, what is not the reading of prompts are steps.
    step = (seats * 1000 * output / rate - seats * length / reading) / output
    each = max(0.0, (step - single) / (seats - 1))
    return Calibrated(Engine(single - each, each, reading, step_tokens(on)), rate, length / prompt, prompt)


def pace(asked: Asked) -> float:
    """Milliseconds between two tokens."""
    return 1000 * (asked.tokens[-1] - asked.tokens[0]) / (asked.output - 1)


def step_tokens(on: Stack) -> int:
    with urllib.request.urlopen(f"http://{on.upstream}/deskmate/plan", timeout=10) as plan:
        return int(json.loads(plan.read())["step_tokens"])


# simulated ------------------------------------------------------------------------------------------------------------
def simulated(workload: Workload, calibrated: Calibrated, at: Setting) -> Played:
    played = Played(workload.name, at := workload.setting(at))
    for arm in workload.arms if workload.virtual else ():
        seats = at.seats - Capacity(at.seats).kept if arm == ON_W else at.seats
        line = ModelLine(Model(), "gw_one", longest=1024, longest_wait_seconds=1e6)
        world = World(line, Capacity(seats), arm not in (FAIR, ALONE), calibrated.engine)
        played.by[arm] = [asyncio.run(virtual(VirtualCrowd(world, calibrated.longer), workload, arm, at))]
    return played


async def virtual(people: VirtualCrowd, workload: Workload, arm: str, at: Setting) -> VirtualCrowd:
    await workload.played_in(arm)(people, at)
    await people.run(at.seconds)
    return people
