"""`bench overload`: answers a second at once, twice, five and ten times what the engine can do, asked in an open loop.

A scripted engine: 16 seats, each answer takes a second. Who would wait for longer than a few seconds is refused.
Goodput is what is answered whole; a refusal costs the gateway something, and the engine nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp

from tests.bench.crowd import Asked, Crowd, Shape
from tests.bench.stack import Stack, stack

SEATS, PACE_MS, TOKENS = 16, 50, 20
CAPACITY = SEATS * 1000 / (PACE_MS * TOKENS)  # answers a second
LOADS = (0.8, 1, 2, 5, 10)
SECONDS, WARM_SECONDS = 25.0, 8.0
LONGEST_WAIT_SECONDS = 5
PEOPLE = 8


@dataclass(frozen=True)
class Figure:
    load: float
    asked: float  # a second
    answered: float
    waits: tuple[float, float]  # p50, p99 seconds to the first token
    refused_ms: tuple[float, float]  # p50, p99 of the time that a refusal took
    others: Counter[int]


def overload(rounds: int) -> Iterator[str]:
    limits = {"DESKMATE_MAX_WAIT_SECONDS": str(LONGEST_WAIT_SECONDS)}
    with stack(seats=SEATS, more=limits, people=[1] * PEOPLE) as on:
        on.script(answer="word " * (TOKENS + 8), pace_ms=PACE_MS)
        figures = [asyncio.run(measured(on, load)) for _ in range(rounds) for load in LOADS]
    yield f"{CAPACITY:.0f} answers a second at most; {PEOPLE} people; a wait past {LONGEST_WAIT_SECONDS} s is refused."
    yield ""
    yield "| load | asked/s | answered/s | ÷ most | TTFT p50 / p99 s | a refusal p50 / p99 ms | anything else |"
    yield "|---|---|---|---|---|---|---|"
    most = max(figure.answered for figure in figures)
    for load in LOADS:
        same = [figure for figure in figures if figure.load == load]
        one = sorted(same, key=lambda figure: figure.answered)[len(same) // 2]
        waits, refused = (" / ".join(f"{value:.2f}" for value in pair) for pair in (one.waits, one.refused_ms))
        others = ", ".join(f"{count} × {status}" for status, count in one.others.items()) or "–"
        yield (
            f"| {load:g} × | {one.asked:.0f} | {one.answered:.1f} | {one.answered / most:.3f} | {waits} | {refused} "
            f"| {others} |"
        )


async def measured(on: Stack, load: float) -> Figure:
    people = {f"p{number}": [{"authorization": f"Bearer {key}"}] for number, key in enumerate(on.keys)}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://{on.gateway}", connector=connector) as http:
        crowd = Crowd(http, on.model, people)
        each = load * CAPACITY / PEOPLE
        await asyncio.gather(*(crowd.sometimes(person, each, Shape.of(20, TOKENS), SECONDS) for person in people))
    return figure(load, crowd.asked)


def figure(load: float, asked: list[Asked]) -> Figure:
    lasts = SECONDS - WARM_SECONDS
    came = [one for one in asked if one.came >= WARM_SECONDS]
    answered = [one for one in asked if one.done and WARM_SECONDS <= one.done < SECONDS]
    refused = [1000 * (one.ended - one.came) for one in came if one.status == 429 and one.ended]
    return Figure(
        load,
        len(came) / lasts,
        len(answered) / lasts,
        pair([one.first - one.came for one in came if one.first]),
        pair(refused),
        Counter(one.status for one in came if one.status not in (200, 429)),
    )


def pair(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(values) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
