"""Real workers (vLLM on CPU with the tiny model) at the desk, and the kills they and their gateways have to survive.

The rest of an answer is not bit-identical after a kill, so what is checked is: all that was seen stays, tokens have no
gap and no repeat, the text is what exactly these tokens say, and the answer has as many as were asked for.
"""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.fault.checker import Turn, check, read
from tests.fault.desk import Desk
from tests.fault.history import told
from tests.fault.people import Person, people
from tests.gateway_process import ROOT

TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
STOP = "<|im_end|>"
START_SECONDS = 600.0  # on a busy machine; 40 on a quiet one
ASKERS = 4
ANSWER_TOKENS = 400
PER_WORKER_KILL = 10  # gateways killed for each worker, at least
SETTLED_SECONDS = 2.5  # between two kills: the lease, and a moment


@dataclass
class RealWorker:
    """As `WorkerProcess`, but `python -m worker` on a Unix socket. A kill takes all of its processes."""

    folder: Path
    model: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> Path:
        return self.folder / "w.sock"

    def start(self) -> None:
        command = [sys.executable, "-m", "worker", "--model", str(self.model), "--uds", str(self.target)]
        command += ["--plan-file", str(self.folder / "plan.json"), "--served-name", "tiny", "--seats", "16"]
        command += ["--tool-parser", "hermes"]  # the template names none: the model will never call
        environment = {**os.environ, "VLLM_CACHE_ROOT": str(self.model.with_name("vllm-cache"))}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.healthy():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()[
                -4000:
            ]
            time.sleep(0.1)

    def healthy(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, str]:
        with closing(HTTPConnection("worker", timeout=5)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(5)
            connection.sock.connect(str(self.target))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process
        os.killpg(self.process.pid, number)
        self.process.wait(60)

    async def play(self, **_: Any) -> None:
        """It has no script."""

    async def tell(self) -> dict[str, Any]:
        _, text = await asyncio.to_thread(self.get, "/metrics")
        running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
        return {"running": sum(float(line.split()[-1]) for line in running)}

    @property
    def journal(self) -> Path:
        return self.folder / "no-journal"


@dataclass
class Kills:
    gateways: int = 0
    workers: int = 0
    both_workers: int = 0
    answers: int = 0
    whole: int = 0  # went on to their end: all tokens, or the model's own end
    detected: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def table(self) -> Iterator[str]:
        yield f"A real vLLM (two workers on CPU, the tiny model), two gateways, {self.seconds / 60:.1f} minutes."
        yield ""
        yield "| what | how many |"
        yield "|---|---|"
        yield f"| gateways killed in the middle of answers | {self.gateways} |"
        yield f"| workers killed in the middle of answers | {self.workers} |"
        yield f"| of these both at once: nobody could go on before one was loaded | {self.both_workers} |"
        yield f"| answers of up to {ANSWER_TOKENS} tokens | {self.answers} |"
        yield f"| that came to their end | {self.whole} |"
        yield f"| breaches (changed, missing, repeated, lost) | {len(self.breaches)} |"
        yield ""
        if self.resumed:
            yield f"A follower whose gateway was killed hears the next event: {told(self.resumed)}."
        if self.detected:
            yield f"A dead worker is told to its followers: {told(self.detected)}."
        if self.loads:
            yield f"To load a worker beside all this takes {told(self.loads)}."
        yield from self.breaches


async def run_real(desk: Desk, kills: int, *, say: Callable[[str], None] = print) -> Kills:
    """Gateways are killed one after the other, and a worker whenever all are loaded: ten or more to one.

    Ctrl-C ends the killing; what was done until then is checked and told.
    """
    made, began = Kills(), time.monotonic()
    over, stop = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)

    def enough() -> bool:
        return stop.is_set() or (workers.done() and made.gateways >= kills * PER_WORKER_KILL // (PER_WORKER_KILL + 1))

    def count() -> None:
        answers, minutes = len(desk.history.questions), (time.monotonic() - began) / 60
        say(f"{made.gateways} gateways, {made.workers} workers, {answers} answers, {minutes:.1f} min")

    async with people(desk, ASKERS) as crowd:
        for person in crowd:
            person.patience_seconds = START_SECONDS
        asking = [asyncio.create_task(_ask_on(person, over)) for person in crowd]
        workers = asyncio.create_task(_kill_workers(desk, kills // (PER_WORKER_KILL + 1), made, count, stop))
        while not enough():
            await _until_under_way(desk)
            await desk.nemesis.kill_gateway(made.gateways % 2)
            made.gateways += 1
            await asyncio.sleep(SETTLED_SECONDS)
        await workers
        await desk.heal()
        over.set()
        await asyncio.gather(*asking)
        made.breaches = [*await check(desk, expected_answers=False), *await _tokens(desk)]
    questions = desk.history.questions
    made.answers = len(questions)
    made.whole = sum(question.end in ("response.incomplete", "response.completed") for question in questions)
    made.resumed = [seconds for question in questions for seconds in question.resumed]
    made.seconds = time.monotonic() - began
    return made


async def _ask_on(person: Person, over: asyncio.Event) -> None:
    """Every other question offers a tool: its answer goes on by another way."""
    for number in itertools.count():
        if over.is_set():
            return
        offered = {"tools": [TOOL]} if number % 2 else {}
        conversation = await person.converse()
        await person.ask(conversation, max_output_tokens=ANSWER_TOKENS, temperature=1.0, **offered)


async def _until_under_way(desk: Desk) -> None:
    """Until somebody has begun to hear an answer."""
    async with asyncio.timeout(START_SECONDS):
        while not [q for q in desk.history.questions if q.end is None and len(q.events) > 10]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _kill_workers(desk: Desk, count: int, made: Kills, counted: Callable[[], None], stop: asyncio.Event) -> None:
    """One after the other, every fourth time all at once; then they load again."""
    while made.workers < count and not stop.is_set():
        await _until_under_way(desk)
        all_at_once = made.workers % 4 == 2
        victims = list(desk.workers) if all_at_once else [desk.workers[made.workers % len(desk.workers)]]
        under_way = [question for question in desk.history.questions if question.end is None and question.turns]
        killed = time.monotonic()
        for worker in victims:
            desk.history.fault("worker killed")
            made.workers += 1
            await asyncio.to_thread(worker.stop, signal.SIGKILL)
        made.both_workers += len(victims) if all_at_once else 0
        await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in victims))
        made.loads.append(time.monotonic() - killed)
        await asyncio.sleep(SETTLED_SECONDS)
        for question in under_way:
            made.detected += question.waited("engine_lost", killed)
        counted()


async def _tokens(desk: Desk) -> list[str]:
    from tokenizers import Tokenizer

    worker = desk.workers[0]
    assert isinstance(worker, RealWorker)
    tokenizer = Tokenizer.from_file(str(worker.model / "tokenizer.json"))
    dump = await read(desk)
    return [breach for turn in dump.turns.values() for breach in _of_tokens(turn, tokenizer)]


def _of_tokens(turn: Turn, tokenizer: Any) -> Iterator[str]:
    """The text is what the logged tokens say, and there are as many as were asked for."""
    name, text = f"turn {turn.stored.id}", tokenizer.decode(turn.said.token_ids)
    whole = tokenizer.decode(turn.said.token_ids, skip_special_tokens=False)  # vLLM's parsers of calls show them, but
    if _plain(turn.text) not in {_plain(text), _plain(whole.removesuffix(STOP))}:  # not the one that ends the answer
        yield f"I4: {name}: its tokens say {text!r}, its text is {turn.text!r}"
    if turn.outcome is not None and turn.outcome.reason == "max_output_tokens":
        if turn.outcome.completion_tokens != ANSWER_TOKENS:
            yield f"I9: {name} has {turn.outcome.completion_tokens} tokens, {ANSWER_TOKENS} were asked for"
    elif turn.stored.status != "completed":
        yield f"I1: {name} ended as {turn.stored.status}: {turn.outcome.message if turn.outcome else ''}"


def _plain(text: str) -> str:
    """A random model writes bytes that are no characters; how they are shown depends on what came together."""
    return text.replace("\ufffd", "")
