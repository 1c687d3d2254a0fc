"""`bench step`: what running streams and a short question feel while somebody's long prompt is read, on a real worker.

A step of the engine is bounded by its plan: so long, at most, does a long prompt hold everybody up. Knows no gateway.
"""

import asyncio
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from tests.bench.crowd import Asked, Crowd
from tests.line_simulation import percentile

STREAMS, TOKENS = 4, 3000
LONG = 4000  # tokens of the prompt
SHORT = 40
QUIET_SECONDS, BEFORE_SECONDS = 5.0, 3.0


@dataclass(frozen=True)
class Round:
    """Seconds."""

    gaps_before: Sequence[float]
    gaps_meanwhile: Sequence[float]
    long: Asked
    short: Asked


def step(upstream: str, rounds: int) -> Iterator[str]:
    found = asyncio.run(measured(upstream, rounds))
    before = [gap for one in found for gap in one.gaps_before]
    meanwhile = [gap for one in found for gap in one.gaps_meanwhile]
    size = statistics.median(one.long.prompt for one in found)
    yield f"{STREAMS} running streams, beside them a prompt of {size:.0f} tokens and, a moment later, a short question;"
    yield f"{rounds} rounds."
    yield ""
    yield "| what | p50 s | p99 s | longest s |"
    yield "|---|---|---|---|"
    for what, gaps in (("between two tokens, before", before), ("between two tokens, while it is read", meanwhile)):
        told = (percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps))
        yield f"| {what} | {' | '.join(f'{value:.3f}' for value in told)} |"
    for what, waits in (
        ("first token of the long prompt", [first(one.long) for one in found]),
        ("first token of the short question", [first(one.short) for one in found]),
    ):
        yield f"| {what} | {statistics.median(waits):.3f} | – | {max(waits):.3f} |"


async def measured(upstream: str, rounds: int) -> list[Round]:
    async with aiohttp.ClientSession(f"http://{upstream}", timeout=aiohttp.ClientTimeout(total=None)) as http:
        async with http.get("/v1/models") as models:
            model = (await models.json())["data"][0]["id"]
        await Crowd(http, model, {}).ask("warm", SHORT, 4)
        return [await one_round(Crowd(http, model, {}, seed=number)) for number in range(rounds)]


async def one_round(people: Crowd) -> Round:
    running = [asyncio.create_task(people.ask(f"running{n}", SHORT, TOKENS)) for n in range(STREAMS)]
    await asyncio.sleep(QUIET_SECONDS)
    reading = asyncio.create_task(people.ask("long", LONG, 2))
    await asyncio.sleep(0.5)
    short = await people.ask("short", SHORT, 2)
    long = await reading
    for task in running:  # what comes after is not looked at
        task.cancel()
    await asyncio.wait(running)
    streams = [one for one in people.asked if one.person.startswith("running")]
    first_token = long.first or long.came
    return Round(
        gaps(streams, QUIET_SECONDS - BEFORE_SECONDS, long.came), gaps(streams, long.came, first_token), long, short
    )


def gaps(streams: Sequence[Asked], start: float, end: float) -> list[float]:
    """Between two tokens of which the second came in that time."""
    pairs = [pair for one in streams for pair in zip(one.tokens, one.tokens[1:], strict=False)]
    return [second - first for first, second in pairs if start <= second <= end]


def first(asked: Asked) -> float:
    return (asked.first or float("inf")) - asked.came
