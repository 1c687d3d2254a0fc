"""The long form: people go on while one fault follows the other, drawn by chance, and a table tells how it went.

`run` on the scripted worker, `run_real` on a real one. Knows how often what breaks; how is `nemesis.py`'s.
"""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.fault.checker import check
from tests.fault.desk import Desk, Generation
from tests.fault.history import History, Question, told
from tests.fault.nemesis import Nemesis
from tests.fault.people import Person, people

CODE = re.compile(rb'"error":{"code":"(\w+)"')
MOST_TURNS = 6  # of one conversation, so that prompts stay short
BATCH_FAULTS = 500  # then everything is healed and checked, and a new crowd comes
CHANCES = {
    "cut clients": 20,
    "cut engine": 14,
    "cut Redis": 14,
    "lose replies": 18,
    "slow Redis": 3,
    "stall": 2,
    "kill worker": 10,
    "kill Redis": 7,
    "kill gateway": 9,
    "freeze gateway": 1,
    "freeze worker": 1,
    "restart gateway": 1,
}


@dataclass
class Tally:
    """What came of all batches."""

    faults: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    completed: int = 0
    failed: int = 0  # ended with a typed error, its part kept
    stopped: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # codes of the failed
    breaches: list[str] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    generations: int = 0
    broken: int = 0  # calls and streams that broke under their clients
    seconds: float = 0.0

    def add(self, history: History, breaches: list[str], generations: list[Generation]) -> None:
        for fault in history.faults:
            self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1
        for question in history.questions:
            self.acknowledged += question.acknowledged
            self.completed += question.end == "response.completed"
            self.failed += question.end == "response.failed"
            self.stopped += question.end == "response.incomplete"
            self.refused += not question.acknowledged
            self.resumed += question.resumed
            if question.end == "response.failed":
                found = CODE.search(question.events[question.last])
                self.reasons[found[1].decode() if found else "without a code"] += 1
        self.broken += sum(call.status is None for call in history.calls)
        self.broken += sum(len(question.resumed) for question in history.questions)
        self.breaches += breaches
        self.generations += len(generations)

    @property
    def faults_in_all(self) -> int:
        return sum(self.faults.values())

    def breached(self, *names: str) -> int:
        return sum(breach.startswith(names) for breach in self.breaches)

    def table(self) -> Iterator[str]:
        yield f"{self.faults_in_all:,} faults in {self.seconds / 60:.1f} minutes on the scripted worker."
        yield ""
        yield "| fault | times |"
        yield "|---|---|"
        for kind, count in sorted(self.faults.items(), key=lambda pair: -pair[1]):
            yield f"| {kind} | {count:,} |"
        yield ""
        yield "| what | how many |"
        yield "|---|---|"
        rows = {
            "questions acknowledged": self.acknowledged,
            "of these answered whole": self.completed,
            "stopped by their person": self.stopped,
            "ended with a typed error, their part kept": self.failed,
            "refused for good, nothing kept": self.refused,
            "answers begun or gone on with by the worker": self.generations,
            "calls and streams that broke under a client": self.broken,
            "acknowledged and lost (I1)": self.breached("I1"),
            "there twice (I2)": self.breached("I2"),
            "seen bytes that changed (I4)": self.breached("I4"),
            "other breaches": len(self.breaches) - self.breached("I1", "I2", "I4"),
        }
        for what, number in rows.items():
            yield f"| {what} | {number:,} |"
        if self.reasons:
            yield ""
            yield f"The typed errors: {', '.join(f'{code} {count}' for code, count in self.reasons.most_common())}."
        if self.resumed:
            yield ""
            yield f"From a broken stream to its next event: {told(self.resumed)} ({len(self.resumed):,} times)."


async def run(desk: Desk, faults: int, *, users: int = 20, seed: int = 0, say: Callable[[str], None] = print) -> Tally:
    """Batches until there were so many faults. Stops early at a breach: what follows would only hide it."""
    tally, began, luck = Tally(), time.monotonic(), random.Random(seed)
    while tally.faults_in_all < faults and not tally.breaches:
        await desk.fresh()
        wanted = min(BATCH_FAULTS, faults - tally.faults_in_all)
        await batch(desk, wanted, users, luck)
        tally.add(desk.history, await check(desk), desk.generations())
        tally.seconds = time.monotonic() - began
        say(f"{tally.faults_in_all:,} faults, {tally.acknowledged:,} questions, {len(tally.breaches)} breaches")
    return tally


async def batch(desk: Desk, faults: int, users: int, luck: random.Random) -> None:
    """People who go on while things break; then everything is whole again and they follow their answers to the end."""
    await desk.play(pace_ms=10)
    async with people(desk, users, luck.randrange(1 << 30)) as crowd:
        over = asyncio.Event()
        asking = [asyncio.create_task(go_on(person, over)) for person in crowd]
        async with blunders(desk.nemesis, luck) as draw:
            while len(desk.history.faults) < faults:
                await asyncio.sleep(luck.random() * 0.06)
                draw()
        await desk.heal()
        over.set()
        await asyncio.gather(*asking)


@asynccontextmanager
async def blunders(nemesis: Nemesis, luck: random.Random) -> AsyncIterator[Callable[[], None]]:
    """A function that lets one more thing break; what takes a while goes on beside it, one of a kind at a time."""
    under_way: dict[str, asyncio.Task[None]] = {}
    kinds, weights = list(CHANCES), list(CHANCES.values())

    def draw() -> None:
        kind = luck.choices(kinds, weights)[0]
        part = kind.split()[-1]  # a part that is down already cannot break once more
        if (task := under_way.get(part)) is None or task.done():
            if task is not None:
                task.result()
            under_way[part] = asyncio.create_task(_break(nemesis, kind, luck))

    yield draw
    await asyncio.gather(*under_way.values())


async def _break(nemesis: Nemesis, kind: str, luck: random.Random) -> None:
    desk, seconds = nemesis.desk, luck.random()
    number = luck.randrange(len(desk.gateways))
    match kind:
        case "cut clients":
            nemesis.cut(desk.doors[number], "client", luck.randint(1, 4))
        case "cut engine":
            nemesis.cut(luck.choice(desk.worker_wires), "engine", luck.randint(1, 3))
        case "cut Redis":
            nemesis.cut(desk.redis_wire, "Redis", luck.randint(1, 3))
        case "lose replies":
            wire, name = luck.choice([(desk.redis_wire, "Redis"), (desk.doors[number], "a gateway")])
            async with nemesis.losing(wire, name, 0.05):
                await asyncio.sleep(seconds)
        case "slow Redis":
            async with nemesis.slow(desk.redis_wire, "Redis", 0.05, 0.15):
                await asyncio.sleep(seconds)
        case "stall":
            async with nemesis.stalled(luck.choice(desk.wires), "connections"):
                await asyncio.sleep(seconds * 3)
        case "freeze gateway":
            async with nemesis.frozen("gateway", number):
                await asyncio.sleep(1 + seconds * 4)
        case "freeze worker":
            async with nemesis.frozen("worker", luck.randrange(len(desk.workers))):
                await asyncio.sleep(1 + seconds * 4)
        case _:
            await _kill(nemesis, kind, number, seconds)


async def _kill(nemesis: Nemesis, kind: str, number: int, seconds: float) -> None:
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "kill worker": lambda: nemesis.kill_worker(away_seconds=seconds),
        "kill Redis": lambda: nemesis.kill_redis(away_seconds=seconds),
        "kill gateway": lambda: nemesis.kill_gateway(number),
        "restart gateway": lambda: nemesis.restart_gateway(number),
    }
    await ways[kind]()


async def go_on(person: Person, over: asyncio.Event) -> None:
    """Ask; now and then stop, branch, leave and come back, delete."""
    conversation, asked, left = await person.converse(), 0, list[Question]()
    while not over.is_set():
        choice = person.luck.random()
        leave = person.luck.randint(3, 20) if choice < 0.25 else None
        question = await person.ask(conversation, leave_after=leave)
        asked += 1
        if leave is not None and question.acknowledged:
            left.append(question)
            if choice < 0.1:
                await person.stop(question)
            await person.follow(question)
        elif choice > 0.9 and question.acknowledged and question.end is not None:
            conversation, asked = await _branched(person, question, conversation), 1
        if asked >= MOST_TURNS:
            if choice > 0.5 and question.end is not None:
                await person.delete(conversation)
            conversation, asked = await person.converse(), 0


async def _branched(person: Person, question: Question, otherwise: str) -> str:
    try:
        return await person.branch(question)
    except LookupError:  # what it would begin with was deleted
        return otherwise
