"""`bench cancel`: how soon a real worker has stopped working for somebody who left, in each phase and on each route.

Counted is what vLLM says of itself: requests that run or wait, looked at every 20 ms.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp

from tests.bench.stack import Stack, stack, total
from tests.line_simulation import percentile

TRIES = 10  # of each phase and route, in each round
SHORT, LONG = "word " * 20, "word " * 1500  # a prompt that is read at once, and one that takes seconds
TOKENS = 1000
LOOK_SECONDS, PATIENCE_SECONDS = 0.02, 60.0
ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
PHASES = ("read", "written", "whole")  # its prompt is being read; its answer written; the same, and not streamed


def cancels(upstream: str, rounds: int) -> Iterator[str]:
    with stack(upstream) as on:
        found = asyncio.run(measured(on, rounds * TRIES))
    yield f"{rounds * TRIES} tries of each; seconds from the client's leaving until the engine runs nothing."
    yield ""
    yield "| route | phase | p50 s | p99 s | longest s |"
    yield "|---|---|---|---|---|"
    for (route, phase), seconds in found.items():
        told = (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))
        yield f"| {route} | {phase} | {' | '.join(f'{value:.3f}' for value in told)} |"


async def measured(on: Stack, tries: int) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {(route, phase): [] for route in ROUTES for phase in PHASES}
    async with aiohttp.ClientSession() as http:
        for _ in range(tries):
            for (route, phase), seconds in found.items():
                await until_idle(http, on)
                async with asked(http, on, route, phase):
                    left = time.perf_counter()
                await until_idle(http, on)
                seconds.append(time.perf_counter() - left)
    return found


@asynccontextmanager
async def asked(http: aiohttp.ClientSession, on: Stack, route: str, phase: str) -> AsyncIterator[None]:
    """A request that is in this phase; at the end its client leaves."""
    text, streamed = LONG if phase == "read" else SHORT, phase != "whole"
    body: dict[str, object] = {"model": on.model, "stream": streamed}
    if route == "/v1/responses":
        body |= {"input": text, "max_output_tokens": TOKENS}
    else:
        body |= {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS}
    request = asyncio.create_task(http.post(f"http://{on.gateway}{route}", json=body, headers=headers(on)).__aenter__())
    try:
        while not await running(http, on):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(LOOK_SECONDS)
        if phase == "written":
            answer = await request
            seen = b""
            while b"delta" not in seen:
                seen += await answer.content.readany()
        yield
    finally:
        if request.done():
            request.result().close()
        else:
            request.cancel()
            await asyncio.wait([request])


def headers(on: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {on.key}", "anthropic-version": "2023-06-01"}


async def until_idle(http: aiohttp.ClientSession, on: Stack) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await running(http, on):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)


async def running(http: aiohttp.ClientSession, on: Stack) -> float:
    async with http.get(f"http://{on.upstream}/metrics") as answer:
        return total(await answer.text(), "num_requests_running", "num_requests_waiting")
