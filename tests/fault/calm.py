"""One fault at a time, timed: how soon an abort reaches the engine, a death is told, an answer goes on.

A part of the long form on the scripted worker; in its mix of faults nobody could tell which delay is whose.
What is left behind is measured too: descriptors and memory of gateways that answered, were stopped and left, and stay.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault.checker import check, settle
from tests.fault.desk import Desk
from tests.fault.history import Question, percentiles
from tests.fault.people import Person, people

CROWD = 8
WARM_ROUNDS, ROUNDS = 30, 30  # of a whole, a stopped and a left answer for everybody
DEATHS = 20
OUTAGES = 5
LEAVE_AFTER = 8  # events, so that tokens have come
MOST_MORE_DESCRIPTORS = 8  # connections that are kept open for the next
MOST_MORE_MIB = 16.0
LONG_PACE_MS = 60  # answers of some seconds, so that a fault meets them in the middle


@dataclass
class Calm:
    """Seconds, each of one occasion."""

    left: list[float] = field(default_factory=list)  # from a listener's leaving to the engine's end
    stopped: list[float] = field(default_factory=list)  # from a stop to the engine's end
    told: list[float] = field(default_factory=list)  # from a worker's death until its followers hear of it
    gone_on: list[float] = field(default_factory=list)  # until the same answer goes on at another worker
    adopted: list[float] = field(default_factory=list)  # from a gateway's death to its followers' next event
    refused: list[float] = field(default_factory=list)  # what a 503 takes while Redis is away
    before: list[tuple[int, float]] = field(default_factory=list)  # descriptors and MiB of each gateway
    after: list[tuple[int, float]] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)

    def table(self) -> Iterator[str]:
        yield f"One fault at a time, {CROWD} people:"
        yield ""
        yield "| from … to … | p50 | p99 | times |"
        yield "|---|---|---|---|"
        rows = {
            "a listener leaves … the engine has stopped": self.left,
            "stop … the engine has stopped": self.stopped,
            "a worker dies … its followers are told": self.told,
            "a worker dies … the same answer goes on at another": self.gone_on,
            "a gateway dies … its followers' next event": self.adopted,
            "a question while Redis is away … its 503": self.refused,
        }
        for what, seconds in rows.items():
            p50, p99 = percentiles(seconds)
            yield f"| {what} | {p50 * 1000:.0f} ms | {p99 * 1000:.0f} ms | {len(seconds)} |"
        yield ""
        count = ROUNDS * CROWD * 3
        grown = ", ".join(
            f"{descriptors - was} descriptors and {mib - mib_was:+.1f} MiB"
            for (descriptors, mib), (was, mib_was) in zip(self.after, self.before, strict=True)
        )
        yield f"{count} answers, whole, stopped and left, made the gateways grow by {grown} (after a warm-up as long)."


async def run_calm(desk: Desk) -> Calm:
    made = Calm()
    for phase in (_aborts, _worker_deaths, _gateway_deaths, _outages):
        await desk.fresh()
        async with people(desk, CROWD) as crowd:
            await phase(desk, crowd, made)
            made.breaches += await check(desk)
    return made


async def _aborts(desk: Desk, crowd: list[Person], made: Calm) -> None:
    await desk.play(pace_ms=5)
    await _rounds(desk, crowd, Calm(), WARM_ROUNDS)
    made.before = [_size(gateway.process) for gateway in desk.gateways]
    await _rounds(desk, crowd, made, ROUNDS)
    made.after = [_size(gateway.process) for gateway in desk.gateways]
    for number, ((was, mib_was), (now, mib)) in enumerate(zip(made.before, made.after, strict=True)):
        if now - was > MOST_MORE_DESCRIPTORS or mib - mib_was > MOST_MORE_MIB:
            made.breaches.append(f"I7: gateway {number} grew from {was} to {now} descriptors, {mib_was} to {mib} MiB")


async def _rounds(desk: Desk, crowd: list[Person], made: Calm, count: int) -> None:
    """Everybody has one answer whole, stops one and leaves one; then all of it is deleted."""
    moments: dict[str, tuple[list[float], float]] = {}

    async def one(person: Person) -> None:
        conversation = await person.converse()
        await person.ask(conversation)
        stopped = await person.ask(conversation, leave_after=LEAVE_AFTER)
        moments[stopped.turn] = made.stopped, time.time()
        await person.stop(stopped)
        left = await person.ask(conversation, leave_after=LEAVE_AFTER, background=False)
        moments[left.turn] = made.left, time.time()
        left.stopped = True
        await _unlocked(person, conversation)

    for _ in range(count):
        await asyncio.gather(*(one(person) for person in crowd))
    await settle(desk)
    for generation in desk.generations():
        if generation.turn in moments and generation.ended is not None:
            times, moment = moments[generation.turn]
            times.append(max(0.0, generation.ended - moment))


async def _unlocked(person: Person, conversation: str) -> None:
    while not await person.delete(conversation):  # its answer is ending
        await person.pause()


async def _worker_deaths(desk: Desk, crowd: list[Person], made: Calm) -> None:
    async def kill(number: int) -> float:
        victim = number % len(desk.workers)
        moment = time.monotonic()
        await desk.nemesis.kill_worker(victim)
        return moment

    async for moment, under_way in _deaths(desk, crowd, kill):
        for question in under_way:
            made.told += question.waited("engine_lost", moment)
            made.gone_on += question.waited("resuming", moment)


async def _gateway_deaths(desk: Desk, crowd: list[Person], made: Calm) -> None:
    async def kill(number: int) -> float:
        await desk.nemesis.kill_gateway(number % len(desk.gateways))
        return time.monotonic()

    async for _, under_way in _deaths(desk, crowd, kill):
        for question in under_way:
            made.adopted += question.resumed


async def _deaths(
    desk: Desk, crowd: list[Person], kill: Callable[[int], Awaitable[float]]
) -> AsyncIterator[tuple[float, list[Question]]]:
    """Somebody dies in the middle of everybody's answer; given are the moment and the answers, whole by then."""
    await desk.play(pace_ms=LONG_PACE_MS)
    conversations = [await person.converse() for person in crowd]
    for number in range(DEATHS):
        asked = len(desk.history.questions)
        asking = [asyncio.create_task(p.ask(where)) for p, where in zip(crowd, conversations, strict=True)]
        await _speaking(desk, asked)
        moment = await kill(number)
        yield moment, list(await asyncio.gather(*asking))
        await desk.heal()


async def _speaking(desk: Desk, asked: int) -> None:
    """Until everybody hears an answer."""
    async with asyncio.timeout(30):
        while len([q for q in desk.history.questions[asked:] if len(q.events) > LEAVE_AFTER]) < CROWD:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _outages(desk: Desk, crowd: list[Person], made: Calm) -> None:
    for _ in range(OUTAGES):
        await desk.nemesis.kill_redis(back=False)
        for person in crowd:
            began = time.monotonic()
            status, _ = await person.call("POST", "/v1/responses", {"input": "anybody?"})
            if status == 503:
                made.refused.append(time.monotonic() - began)
        await asyncio.to_thread(desk.redis.start)
        await desk.until_ready()


def _size(process: object) -> tuple[int, float]:
    """Open descriptors and resident MiB."""
    folder = Path(f"/proc/{process.pid}")  # type: ignore[attr-defined]
    resident = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return len(list((folder / "fd").iterdir())), int(resident.split()[1]) / 1024
