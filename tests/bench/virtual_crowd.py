"""People in virtual time, before the model of the line and an engine that is a rule of three. Knows no workload."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tests.bench.crowd import Shape
from tests.line_simulation import Job, World

LOOK_SECONDS = 1.0  # between two looks at the waits that are told
MORE = 1.5  # of the time, so that who came towards the end is answered


@dataclass
class VirtualCrowd:
    """`longer`: tokens of a prompt for each that was asked for. They say what they will do; `run` lets them do it."""

    world: World
    longer: float = 1.0
    seed: int = 1
    weights: dict[str, float] = field(default_factory=dict)

    async def always(
        self, person: str, parallel: int, shape: Shape, until: float, start: float = 0.0, *, stay: bool = False
    ) -> None:
        chance = random.Random(f"{self.seed} {person}")
        self.world.closed(person, parallel, lambda: self._job(chance, person, shape), start=1000 * start)

    async def sometimes(self, person: str, a_second: float, shape: Shape, until: float, start: float = 0.0) -> None:
        chance = random.Random(f"{self.seed} {person}")
        at = start
        while (at := at + chance.expovariate(a_second)) < until:
            self.world.at(1000 * at, self._job(chance, person, shape))

    def _job(self, chance: random.Random, person: str, shape: Shape) -> Job:
        prompt, output = (chance.randint(*bounds) for bounds in (shape.prompt, shape.output))
        weight = self.weights.get(person, 1.0)
        return Job(person, round(prompt * self.longer), output, shape.says, flex=shape.flex, weight=weight)

    async def weigh(self, weights: Mapping[str, float]) -> None:
        self.weights = self.weights or dict(weights)  # what is said at last is for who comes after the run

    async def kill(self, at: float) -> None:
        raise NotImplementedError("bench fairness --simulate has the death of a gateway")

    async def run(self, seconds: float) -> None:
        looked = 0.0
        while (looked := looked + LOOK_SECONDS) < seconds:
            await self.world.run(1000 * looked)
            await self.world.look()
        await self.world.run(1000 * MORE * seconds)

    def waits(self, people: Collection[str], after: float, before: float = float("inf")) -> list[float]:
        return self.world.waits(*people, after=1000 * after, before=1000 * before)

    def service(self, person: str, start: float, end: float) -> float:
        return self.world.service(person, 1000 * start, 1000 * end)

    def refused(self) -> list[int]:
        return [429 for one in self.world.ran if one.refused]

    def estimates(self) -> list[tuple[float, float]]:
        return [(told, (one.first - at) / 1000) for one, told, at in self.world.told if one.first]

    def off(self) -> float:
        raise NotImplementedError("bench fairness --simulate has the death of a gateway")
