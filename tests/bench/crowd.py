"""People who ask at once: some all the time, some now and then, each as themselves. Knows no arm and no figure.

Chat completions, streamed, of a fixed length; every prompt is another one, so that no engine has read it before.
"""

import asyncio
import itertools
import random
import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import aiohttp

FIRST = b'"content":"'  # stands in an event that carries text
EMPTY = b'"content":""'
TOLD = re.compile(rb": queued, place \d+, about ([\d.]+) s")
WORDS = ["seat", "line", "share", "token", "clock", "person", "answer", "engine", "weight", "queue", "light", "heavy"]
REFUSED_SECONDS = 0.2  # whoever finds nobody at home comes again

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Shape:
    """What somebody asks, in tokens, each between two bounds. `says`: another `max_tokens` than what they read, after
    which they leave."""

    prompt: tuple[int, int]
    output: tuple[int, int]
    says: int | None = None
    flex: bool = False

    @classmethod
    def of(cls, prompt: int, output: int, says: int | None = None, *, flex: bool = False) -> "Shape":
        return cls((prompt, prompt), (output, output), says, flex)


@dataclass
class Asked:
    """Seconds since the crowd began."""

    person: str
    came: float
    first: float | None = None
    done: float | None = None  # its last event
    ended: float | None = None  # in whatever way; None: the crowd went home
    status: int = 0
    prompt: int = 0
    output: int = 0  # tokens, as the engine counts them; 0: it did not come to that
    tokens: list[float] = field(default_factory=list)  # when each came; a busy engine sends two at once
    told: list[tuple[float, float]] = field(default_factory=list)  # when, and how long it still takes


@dataclass
class Crowd:
    """`headers`: what makes somebody that person; of several keys they take one after the other.

    `gate`: so many are let in at once, in the order in which they came."""

    http: aiohttp.ClientSession
    model: str
    headers: Mapping[str, Sequence[Headers]]
    seed: int = 1
    gate: asyncio.Semaphore | None = None
    asked: list[Asked] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._keys = {person: itertools.cycle(keys) for person, keys in self.headers.items()}

    @property
    def now(self) -> float:
        return time.perf_counter() - self.began

    async def ask(self, person: str, prompt: int, output: int, *, says: int | None = None, flex: bool = False) -> Asked:
        """One answer to its end, however it ends."""
        asked = Asked(person, self.now, prompt=prompt)
        self.asked.append(asked)
        chance = random.Random(f"{self.seed} {person} {len(self.asked)} {self.began}")
        words = " ".join(chance.choice(WORDS) + str(chance.randrange(1000)) for _ in range(max(1, prompt // 5)))
        body: dict[str, object] = {
            "model": self.model, "messages": [{"role": "user", "content": words}], "stream": True,
            "max_tokens": says or output, "ignore_eos": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if flex:
            body["service_tier"] = "flex"
        headers = next(self._keys[person]) if person in self._keys else None
        with suppress(aiohttp.ClientError):
            async with (
                self.gate or nullcontext(),
                self.http.post("/v1/chat/completions", json=body, headers=headers) as answer,
            ):
                asked.status = answer.status
                await self._read(answer, asked, output)
        asked.status = asked.status or -1
        asked.ended = self.now
        return asked

    async def _read(self, answer: aiohttp.ClientResponse, asked: Asked, output: int) -> None:
        async for line in answer.content:
            if FIRST in line and EMPTY not in line:
                asked.tokens.append(self.now)
                asked.first = asked.first or self.now
            elif b'"usage":{' in line:
                asked.prompt, asked.output = _count(line, b"prompt_tokens"), _count(line, b"completion_tokens")
            elif told := TOLD.match(line):
                asked.told.append((self.now, float(told[1])))
            if len(asked.tokens) > output:  # it asked for more than it wants
                return
        if answer.status == 200:
            asked.done = self.now

    async def always(
        self, person: str, parallel: int, shape: Shape, until: float, start: float = 0.0, *, stay: bool = False
    ) -> None:
        """So many requests under way: one that ends is followed by the next. At the end all go home; with `stay` they
        wait for their answers."""
        chance = random.Random(f"{self.seed} {person}")

        async def one() -> None:
            while self.now < until:
                asked = await self.ask(person, *_size(chance, shape), says=shape.says, flex=shape.flex)
                if asked.status != 200:
                    await asyncio.sleep(REFUSED_SECONDS)

        await asyncio.sleep(start - self.now)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if stay else until - self.now):
                await asyncio.gather(*(one() for _ in range(parallel)))

    async def sometimes(self, person: str, a_second: float, shape: Shape, until: float, start: float = 0.0) -> None:
        """At so many a second, whether the one before has been answered or not; all wait for their answer."""
        chance = random.Random(f"{self.seed} {person}")
        under_way: set[asyncio.Task[Asked]] = set()
        at = start + chance.expovariate(a_second)
        while at < until:
            await asyncio.sleep(max(0.0, at - self.now))
            under_way.add(asyncio.create_task(self.ask(person, *_size(chance, shape), says=shape.says)))
            at += chance.expovariate(a_second)
        await asyncio.gather(*under_way)

    def waits(self, people: Collection[str], after: float, before: float = float("inf")) -> list[float]:
        """Seconds to the first token, of those who came between and got one."""
        return [a.first - a.came for a in self.asked if a.person in people and after <= a.came < before and a.first]

    def service(self, person: str, start: float, end: float) -> float:
        """Weighted tokens in a time: of a prompt 1 each when the answer begins, of an answer 2 each."""
        mine = [a for a in self.asked if a.person == person]
        prompts = sum(a.prompt for a in mine if a.first and start <= a.first < end)
        each = ((a, a.output / len(a.tokens) if a.output else 1.0) for a in mine if a.tokens)
        return prompts + 2 * sum(weight * sum(start <= at < end for at in a.tokens) for a, weight in each)

    def refused(self) -> list[int]:
        return [a.status for a in self.asked if a.status not in (0, 200)]

    def estimates(self) -> list[tuple[float, float]]:
        """What was told of a wait, and how long it was from then on."""
        return [(told, a.first - at) for a in self.asked if a.first for at, told in a.told]


def _size(chance: random.Random, shape: Shape) -> tuple[int, int]:
    return chance.randint(*shape.prompt), chance.randint(*shape.output)


def _count(line: bytes, name: bytes) -> int:
    return int(line.partition(b'"%s":' % name)[2].split(b",")[0].split(b"}")[0])
