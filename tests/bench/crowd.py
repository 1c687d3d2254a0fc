"""People who ask at once: some all the time, some now and then, each as themselves. Knows no arm and no figure.

Chat completions, streamed, of a fixed length; every prompt is another one, so that no engine has read it before.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

FIRST = b'"content":"'  # stands in an event that carries text
EMPTY = b'"content":""'
WORDS = ["seat", "line", "share", "token", "clock", "person", "answer", "engine", "weight", "queue", "light", "heavy"]


@dataclass
class Asked:
    """Seconds since the crowd began."""

    person: str
    came: float
    first: float | None = None
    done: float | None = None  # its last event
    ended: float | None = None  # in whatever way
    status: int = 0
    prompt: int = 0
    tokens: list[float] = field(default_factory=list)  # when each came


@dataclass
class Crowd:
    """`headers`: what makes somebody that person."""

    http: aiohttp.ClientSession
    model: str
    headers: Mapping[str, Mapping[str, str]]
    seed: int = 1
    asked: list[Asked] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def now(self) -> float:
        return time.perf_counter() - self.began

    async def ask(self, person: str, prompt: int, output: int) -> Asked:
        """One answer to its end, however it ends."""
        asked = Asked(person, self.now, prompt=prompt)
        self.asked.append(asked)
        chance = random.Random(f"{self.seed} {person} {len(self.asked)} {self.began}")
        words = " ".join(chance.choice(WORDS) + str(chance.randrange(1000)) for _ in range(max(1, prompt // 5)))
        body = {
            "model": self.model, "messages": [{"role": "user", "content": words}], "stream": True,
            "max_tokens": output, "ignore_eos": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        try:
            async with self.http.post("/v1/chat/completions", json=body, headers=self.headers.get(person)) as answer:
                asked.status = answer.status
                async for line in answer.content:
                    if FIRST in line and EMPTY not in line:
                        asked.tokens.append(self.now)
                        asked.first = asked.first or self.now
                    elif b'"usage":{' in line:
                        asked.prompt = prompt_tokens(line)
                if answer.status == 200:
                    asked.done = self.now
        except aiohttp.ClientError:
            asked.status = asked.status or -1
        asked.ended = self.now
        return asked

    async def always(self, person: str, parallel: int, prompt: int, output: int, until: float) -> None:
        """So many requests under way: one that ends is followed by the next."""

        async def one() -> None:
            while self.now < until:
                await self.ask(person, prompt, output)

        await asyncio.gather(*(one() for _ in range(parallel)))

    async def sometimes(
        self, person: str, a_second: float, prompt: tuple[int, int], output: tuple[int, int], until: float
    ) -> None:
        """At so many a second, whether the one before has been answered or not."""
        chance = random.Random(f"{self.seed} {person}")
        under_way: set[asyncio.Task[Asked]] = set()
        at = chance.expovariate(a_second)
        while at < until:
            await asyncio.sleep(max(0.0, at - self.now))
            under_way.add(asyncio.create_task(self.ask(person, chance.randint(*prompt), chance.randint(*output))))
            at += chance.expovariate(a_second)
        await asyncio.gather(*under_way)

    def waits(self, people: set[str], after: float) -> list[float]:
        """Seconds to the first token, of those who came after that and got one."""
        return [a.first - a.came for a in self.asked if a.person in people and a.came >= after and a.first]

    def service(self, person: str, start: float, end: float) -> float:
        """Weighted tokens in a time: of a prompt 1 each when the answer begins, of an answer 2 each."""
        mine = [a for a in self.asked if a.person == person]
        prompts = sum(a.prompt for a in mine if a.first and start <= a.first < end)
        return prompts + 2 * sum(start <= at < end for a in mine for at in a.tokens)


def prompt_tokens(line: bytes) -> int:
    return int(line.partition(b'"prompt_tokens":')[2].split(b",")[0].split(b"}")[0])
