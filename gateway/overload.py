"""The overload ladder: what is refused when memory, open files, the storage's time or the disk run short.

Rung 1, *tight*: what can wait (`flex`) is refused. Rung 2, *full*: every new answer is. Reading, stopping, deleting and
signing in go on, and what has begun runs to its end. Each resource climbs at once and comes down when it is well below.
Asking costs no look at anything: a loop looks twice a second. Knows no route and not how anything is measured.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from gateway.errors import Overloaded, Unavailable

LOOK_SECONDS = 0.5
SLOW_IN_A_ROW = 3  # one late answer is a fork or a busy moment, three are a slow storage
RETRY_SECONDS = 5.0
FLEX_RETRY_SECONDS = 30.0  # what can wait is to leave room for what cannot

log = logging.getLogger("deskmate.overload")

Measure = Callable[[], Awaitable[Mapping[str, float]]]


class Rung(IntEnum):
    WELL = 0
    TIGHT = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that may run short. A rung is left when the reading is below `eased` times what led to it."""

    name: str
    tight: float
    full: float
    eased: float
    message: str

    def rung(self, reading: float, now: Rung) -> Rung:
        def reached(rung: Rung, mark: float) -> bool:
            return reading >= (mark * self.eased if now >= rung else mark)

        if reached(Rung.FULL, self.full):
            return Rung.FULL
        return Rung.TIGHT if reached(Rung.TIGHT, self.tight) else Rung.WELL


# Shares are of the last 10 GiB (machine.py): memory and disk are tight with 1 GiB left, or 10 % where there is less.
# A storage that does not answer in two seconds is away (redis_client.py), and to connect and ask takes two answers.
RESOURCES = (
    Resource("memory", 0.90, 0.95, 0.97, "The server is short of memory"),
    Resource("files", 0.80, 0.90, 0.97, "The server has nearly all the connections it can have"),
    Resource("disk", 0.90, 0.95, 0.97, "The server's disk is nearly full"),
    Resource("redis", 0.3, 0.75, 0.7, "The storage answers slowly"),
)


class Ladder:
    """Where each resource stands. `measure`: readings by name; one that is not told counts as well."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self.rungs = dict.fromkeys(RESOURCES, Rung.WELL)
        self._worst = Rung.WELL

    def check(self, *, flex: bool) -> None:
        """Raise Overloaded where a new request is not taken now."""
        if self._worst < (Rung.TIGHT if flex else Rung.FULL):
            return
        short = next(resource for resource, rung in self.rungs.items() if rung is self._worst)
        if self._worst is Rung.FULL:
            raise Overloaded(f"{short.message}; ask again in a moment.", retry_after_seconds=RETRY_SECONDS)
        raise Overloaded(
            f'{short.message}; what can wait is not taken now. Ask again later, or without `service_tier: "flex"`.',
            retry_after_seconds=FLEX_RETRY_SECONDS,
        )

    def shown(self) -> dict[str, str]:
        """What runs short, by name: tight or full."""
        return {resource.name: rung.name.lower() for resource, rung in self.rungs.items() if rung}

    async def run(self) -> None:
        while True:
            await asyncio.gather(self._look(), asyncio.sleep(LOOK_SECONDS))

    async def _look(self) -> None:
        try:
            self.take(await self._measure())
        except Exception:  # the outermost edge of a loop of ours
            log.exception("a look at what is left broke off")

    def take(self, readings: Mapping[str, float]) -> None:
        for resource, before in self.rungs.items():
            reading = readings.get(resource.name)
            rung = Rung.WELL if reading is None else resource.rung(reading, before)
            if rung is not before:
                self.rungs[resource] = rung
                log.warning("overload: %s is %s (%s)", resource.name, rung.name.lower(), reading)
        self._worst = max(self.rungs.values())


def measuring(machine: Callable[[], Mapping[str, float]], answer_seconds: Callable[[], Awaitable[float]]) -> Measure:
    """Both together. `answer_seconds`: how long the storage takes now; while it is away, it is not told here."""
    answers: deque[float] = deque(maxlen=SLOW_IN_A_ROW)

    async def measure() -> Mapping[str, float]:
        used = await asyncio.to_thread(machine)
        try:
            answers.append(await answer_seconds())
        except Unavailable:
            answers.clear()
        return {**used, "redis": min(answers)} if len(answers) == SLOW_IN_A_ROW else used

    return measure
