"""`bench fairness` on a real worker: FS1 and FS2 with three arms in turn, in one run.

direct      the engine alone: first come, first served
first-come  through the gateway, everybody with one key: one person's line
FQ1         through the gateway, everybody as themselves

Knows the crowd and the stack; the worker runs already, with as many seats as it says.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from gateway.admission.line import Capacity
from tests.bench.crowd import Crowd
from tests.bench.stack import Stack, stack
from tests.line_simulation import percentile

ARMS = ("direct", "first-come", "FQ1")
LIGHT = [f"light{number}" for number in range(6)]
PEOPLE = ["heavy", *LIGHT]
PARALLEL = 32
LIGHT_SHARE = 0.15  # of the tokens that the engine can write
PROMPT, OUTPUT = 128, 64
CALIBRATE_SECONDS, SECONDS, WARM_SECONDS = 12.0, 40.0, 10.0


@dataclass
class Found:
    """Of each arm, a figure for each round."""

    waits: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # a second, of everybody
    apart: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    even: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def on_engine(upstream: str, seats: int, rounds: int) -> Iterator[str]:
    more = {"DESKMATE_QUEUE_PER_PERSON": "1024"}
    with stack(upstream, seats=seats, people=len(PEOPLE), more=more) as on:
        found = asyncio.run(measured(on, seats, rounds))
    kept = Capacity(seats).kept
    length = f"{rounds} rounds of {SECONDS:.0f} s, the first {WARM_SECONDS:.0f} s cut"
    yield f"A real worker with {seats} seats, {kept} of them kept; {length}."
    yield ""
    yield "| what | direct | first-come | FQ1 |"
    yield "|---|---|---|---|"
    alone = percentile(found.waits["alone"][0], 0.5), percentile(found.waits["alone"][0], 0.99)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        waits = [f"{_middle([percentile(one, share) for one in found.waits[arm]]):.3f}" for arm in ARMS]
        yield f"| FS1 light TTFT {name} s (alone {alone[0]:.3f} / {alone[1]:.3f}) | {' | '.join(waits)} |"
    for what, values, digits in (
        ("FS1 tokens/s of everybody", found.tokens, 0),
        ("FS2 service difference ÷ cost of a request, at most", found.apart, 2),
        ("FS2 Jain", found.even, 4),
    ):
        yield f"| {what} | {' | '.join(f'{_middle(values[arm]):.{digits}f}' for arm in ARMS)} |"


async def measured(on: Stack, seats: int, rounds: int) -> Found:
    found = Found()
    rate = await calibrated(on, seats)
    for number in range(rounds):
        for arm in ARMS[:: 1 if number % 2 == 0 else -1]:
            await heavy_and_light(on, arm, rate, found)
            await pair(on, arm, found)
    await heavy_and_light(on, "FQ1", rate, found, alone=True)
    return found


def crowd(http: aiohttp.ClientSession, on: Stack, arm: str) -> Crowd:
    own = {who: {"authorization": f"Bearer {key}"} for who, key in zip(PEOPLE, on.keys, strict=True)}
    headers = {"direct": {}, "first-come": dict.fromkeys(PEOPLE, own["heavy"]), "FQ1": own}
    return Crowd(http, on.model, headers[arm])


def session(on: Stack, arm: str) -> aiohttp.ClientSession:
    address = on.upstream if arm == "direct" else on.gateway
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(f"http://{address}", connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def calibrated(on: Stack, seats: int) -> float:
    """Tokens a second that the engine writes when all its seats are taken."""
    async with session(on, "direct") as http:
        people = crowd(http, on, "direct")
        await people.always("heavy", 2 * seats, PROMPT, OUTPUT, CALIBRATE_SECONDS)
    return sum(len(one.tokens) for one in people.asked) / max(one.done or 0 for one in people.asked)


async def heavy_and_light(on: Stack, arm: str, rate: float, found: Found, *, alone: bool = False) -> None:
    async with session(on, arm) as http:
        people = crowd(http, on, arm)
        each = LIGHT_SHARE * rate / 24 / len(LIGHT)
        asking = [people.sometimes(who, each, (32, 128), (16, 32), SECONDS) for who in LIGHT]
        if not alone:
            asking.append(people.always("heavy", PARALLEL, PROMPT, OUTPUT, SECONDS))
        await asyncio.gather(*asking)
    _answered(people)
    found.waits["alone" if alone else arm].append(people.waits(set(LIGHT), WARM_SECONDS))
    if not alone:
        written = sum(WARM_SECONDS <= at < SECONDS for one in people.asked for at in one.tokens)
        found.tokens[arm].append(written / (SECONDS - WARM_SECONDS))


async def pair(on: Stack, arm: str, found: Found) -> None:
    """Two who always want more, one twice as much as the other."""
    async with session(on, arm) as http:
        people = crowd(http, on, arm)
        await asyncio.gather(
            people.always("heavy", 16, PROMPT, OUTPUT, SECONDS), people.always(LIGHT[0], 32, PROMPT, OUTPUT, SECONDS)
        )
    _answered(people)
    cost = PROMPT + 2 * OUTPUT
    apart = []
    for end in range(int(WARM_SECONDS) + 1, int(SECONDS)):
        served = [people.service(who, WARM_SECONDS, end) for who in PEOPLE[:2]]
        apart.append(abs(served[0] - served[1]) / cost)
    found.apart[arm].append(max(apart))
    a, b = (people.service(who, WARM_SECONDS, SECONDS) for who in PEOPLE[:2])
    found.even[arm].append((a + b) ** 2 / (2 * (a * a + b * b)))


def _answered(people: Crowd) -> None:
    """A figure of answers that failed would be none."""
    if failed := [one for one in people.asked if one.status != 200]:
        raise RuntimeError(f"{len(failed)} of {len(people.asked)} requests were not answered, e.g. {failed[0].status}")


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)
