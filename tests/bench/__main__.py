"""`./deskmate bench NAME`: what the gateway costs, against calling the same upstream directly, interleaved in one run.

relay    chat completions through the gateway, scripted upstream
turn     responses (stored, resumable), scripted upstream
direct   the upstream alone: the floor of the method
storage  the newest 50 of 10,000 conversations through HTTP, and deleting 1,000
engine   tokens a second of a real worker through the gateway ÷ direct
step     what running streams feel while a real worker reads somebody's long prompt
fairness who waits how long beside whom: on a real worker, or in virtual time (--simulate)
cancel   how soon a real worker has stopped when somebody leaves
overload answers a second at 1, 2, 5 and 10 times what the engine can do
streams  1,000 that wait, 400 that hardly read, 1,000 that come back at once (--streams)
backup   the drill: seconds of backup and restore, and what people who write meanwhile wait
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.home import home_of
from tests.bench.backup import drill
from tests.bench.cancels import cancels
from tests.bench.fair_engine import Size
from tests.bench.fairness import measured, simulated
from tests.bench.load import Job, Result
from tests.bench.long_prompt import step
from tests.bench.overload import overload
from tests.bench.stack import ROOT, Stack, cores, real_worker, stack
from tests.bench.storage import storage
from tests.bench.streams import many_streams

TOKENS = 128  # of each answer
STREAMS = (1, 16, 64, 256)
PACE_MS = {1: 5, 16: 5, 64: 5, 256: 20}  # between two tokens: 50 or 200 tokens/s a stream, as real engines do
ANSWERS = {1: 8, 16: 4, 64: 3, 256: 2}  # of each stream
ENGINE_ANSWERS = {1: 2, 16: 1, 32: 1}
SHORT_ANSWERS = 60
QUESTION = "How does a fair queue share one engine between a whole department?"


@dataclass(frozen=True)
class Arm:
    """One way to the upstream. `job` makes the load for so many streams; `tested`: the gateway is what is measured."""

    name: str
    job: Callable[[Stack, int], Job]
    tested: bool


@dataclass(frozen=True)
class Figure:
    """One measurement of one arm."""

    arm: str
    streams: int
    tokens_per_second: float
    cpu_us: float  # per token, of the process under test
    redis_cpu_us: float
    first_ms: tuple[float, float]
    gap_ms: tuple[float, float]


def chat_body(model: str, tokens: int, **fields: object) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    return body | {"max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0, "seed": 1} | fields


def direct(on: Stack, streams: int) -> Job:
    body = chat_body(on.model, TOKENS, stream_options={"include_usage": True})
    return Job(on.upstream, "/v1/chat/completions", body, {}, streams, ANSWERS[streams])


def relay(on: Stack, streams: int) -> Job:
    body = chat_body(on.model, TOKENS)
    return Job(on.gateway, "/v1/chat/completions", body, authorized(on), streams, ANSWERS[streams])


def turn(on: Stack, streams: int) -> Job:
    body: dict[str, object] = {
        "input": QUESTION,
        "stream": True,
        "max_output_tokens": TOKENS,
        "temperature": 0,
        "seed": 1,
    }
    first = "event: response.output_text.delta"
    return Job(on.gateway, "/v1/responses", body, authorized(on), streams, ANSWERS[streams], first)


def authorized(on: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {on.key}"}


DIRECT = Arm("direct", direct, False)
ARMS = {"relay": Arm("relay", relay, True), "turn": Arm("turn", turn, True)}


def measure(on: Stack, arm: Arm, streams: int, tokens: int = TOKENS) -> Figure:
    tested = on.under_test if arm.tested else on.worker
    before, redis_before = tested.cpu_seconds() if tested else 0.0, on.redis.cpu_seconds()
    result = on.load(arm.job(on, streams))
    count = result.answers * tokens
    used = (tested.cpu_seconds() if tested else 0.0) - before
    redis_used = on.redis.cpu_seconds() - redis_before
    return Figure(
        arm.name, streams, count / result.seconds, 1e6 * used / count, 1e6 * redis_used / count,
        (result.first_ms[0], result.first_ms[1]), (result.gap_ms[0], result.gap_ms[1]),
    )  # fmt: skip


def short(on: Stack, address: str, headers: dict[str, str]) -> float:
    """Whole answers of one token a second, 32 at a time."""
    body = chat_body(on.model, 1, stream=False)
    job = Job(address, "/v1/chat/completions", body, headers, 32, SHORT_ANSWERS, '"content"', "", 0.0)
    result: Result = on.load(job)
    return result.answers / result.seconds


def scripted(name: str, rounds: int) -> Iterator[str]:
    """Lines of the report of `relay`, `turn` or `direct`."""
    arms = [DIRECT] if name == "direct" else [DIRECT, ARMS[name]]
    figures: dict[tuple[str, int], list[Figure]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    with stack() as on:
        on.script(answer="word " * (TOKENS + 8))
        idle = on.under_test.rss_bytes()
        for arm in arms:
            measure(on, arm, 16)  # warm
        for _ in range(rounds):
            for streams in STREAMS:
                on.script(pace_ms=PACE_MS[streams])
                for arm in arms:
                    figures[arm.name, streams].append(measure(on, arm, streams))
            on.script(pace_ms=0)
            if name != "turn":
                rates["direct"].append(short(on, on.upstream, {}))
                rates[name].append(short(on, on.gateway, authorized(on)))
            for arm in arms:
                figures[arm.name, 0].append(measure(on, Arm(arm.name, _at_64(arm.job), arm.tested), 64))
        rss = on.under_test.rss_bytes()
    yield from table(arms, figures)
    yield ""
    fast = {arm.name: [figure.tokens_per_second for figure in figures[arm.name, 0]] for arm in arms}
    if len(arms) > 1:
        ratio = [ours / theirs for ours, theirs in zip(fast[name], fast["direct"], strict=True)]
        yield f"Unpaced, 64 streams: {spread(fast[name], 0)} tokens/s, {spread(ratio, 2)} of direct."
    if rates and name != "direct":
        yield f"Short whole answers: {spread(rates[name], 0)} requests/s; direct {spread(rates['direct'], 0)}."
    yield f"Memory of the gateway: {idle / 1e6:.0f} MB idle, {rss / 1e6:.0f} MB after the run."


def _at_64(job: Callable[[Stack, int], Job]) -> Callable[[Stack, int], Job]:
    return lambda on, _: job(on, 64)


def table(arms: list[Arm], figures: dict[tuple[str, int], list[Figure]]) -> Iterator[str]:
    columns = ("streams", "arm", "µs CPU per token", "Redis µs", "tokens/s ÷ direct", "TTFT p50 / p99 ms")
    yield f"| {' | '.join((*columns, 'added p50 / p99 ms', 'gap p99 ms'))} |"
    yield "|---|---|---|---|---|---|---|---|"
    for streams in STREAMS:
        base = figures["direct", streams]
        for arm in arms:
            found = figures[arm.name, streams]
            ratio = [one.tokens_per_second / other.tokens_per_second for one, other in zip(found, base, strict=True)]
            first = [statistics.median(one.first_ms[at] for one in found) for at in (0, 1)]
            added = [
                statistics.median(one.first_ms[at] - other.first_ms[at] for one, other in zip(found, base, strict=True))
                for at in (0, 1)
            ]
            cells = [
                str(streams),
                arm.name,
                spread([one.cpu_us for one in found], 1),
                f"{statistics.median(one.redis_cpu_us for one in found):.1f}" if arm.tested else "–",
                spread(ratio, 3),
                f"{first[0]:.1f} / {first[1]:.1f}",
                f"{added[0]:.2f} / {added[1]:.2f}" if arm.tested else "–",
                f"{statistics.median(one.gap_ms[1] for one in found):.1f}",
            ]
            yield f"| {' | '.join(cells)} |"


def engine(upstream: str, rounds: int) -> Iterator[str]:
    """A real worker that runs already: the same prompts and seeds in both arms."""
    streams_of = tuple(ENGINE_ANSWERS)
    figures: dict[tuple[str, int], list[float]] = defaultdict(list)
    with stack(upstream) as on:
        ANSWERS.update(ENGINE_ANSWERS)
        for arm in (DIRECT, ARMS["relay"]):
            measure(on, arm, 16)  # warm, prefix cache too
        for number in range(rounds):
            for streams in streams_of:
                # Who goes first changes with each round: the second finds the processor warm.
                for arm in (DIRECT, ARMS["relay"])[:: 1 if number % 2 else -1]:
                    figures[arm.name, streams].append(measure(on, arm, streams).tokens_per_second)
    yield "| streams | direct tokens/s | through the gateway | ratio |"
    yield "|---|---|---|---|"
    for streams in streams_of:
        theirs, ours = figures["direct", streams], figures["relay", streams]
        ratio = [one / other for one, other in zip(ours, theirs, strict=True)]
        yield f"| {streams} | {spread(theirs, 0)} | {spread(ours, 0)} | {spread(ratio, 3)} |"


def spread(values: list[float], digits: int) -> str:
    """Median, and the least and the greatest in brackets."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def heading(name: str, rounds: int) -> Iterator[str]:
    where = "one core for the gateway, one for everything else" if cores() else "one core for everything"
    where = "gateway, Redis and worker share all cores" if name in ("engine", "step", "cancel") else where
    yield f"# bench {name}"
    yield ""
    yield f"{datetime.now(UTC):%Y-%m-%d}, {rounds} interleaved rounds, medians (least–greatest), {where}."
    if name not in ("engine", "step", "cancel", "storage", "overload", "streams"):
        yield f"Scripted upstream, {TOKENS} tokens an answer, 5 ms between two tokens (20 ms at 256 streams)."
        yield "CPU of `direct` is the upstream's own: the floor of the method. The gateway does keys, queue, usage."
    yield ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="deskmate bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "name",
        choices=[
            "relay",
            "turn",
            "direct",
            "storage",
            "engine",
            "step",
            "cancel",
            "backup",
            "fairness",
            "overload",
            "streams",
        ],
    )
    parser.add_argument("--conversations", type=int, default=10_000, help="how many for `backup`")
    parser.add_argument("--streams", type=int, default=1000, help="how many for `streams`; fewer is the short form")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="what a real worker serves (default: the demo model)")
    parser.add_argument("--upstream", help="a vLLM that runs already, instead of one of our own: HOST:PORT")
    parser.add_argument("--seats", type=int, default=10, help="how many that vLLM has, for `fairness`")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run of `fairness`; its full form has 90")
    parser.add_argument("--parallel", type=int, default=32, help="requests of FS1's heavy person in `fairness`")
    parser.add_argument("--only", metavar="FS1,FS2", help="these workloads of `fairness`")
    parser.add_argument("--simulate", action="store_true", help="`fairness` in virtual time, --rounds seeds of it")
    parser.add_argument("--json", action="store_true", help="print the lines as a JSON list")
    parser.add_argument("--write", action="store_true", help="also write docs/bench-NAME.md")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if asked.name == "fairness":
        print("\n".join(fairness(asked)))
        return 0
    if asked.name == "backup":
        return report(asked, list(drill(asked.conversations)))
    match asked.name:
        case "engine":
            body = on_a_worker(asked, engine)
        case "step":
            body = on_a_worker(asked, step)
        case "cancel":
            body = on_a_worker(asked, cancels)
        case "storage":
            body = storage(asked.rounds)
        case "overload":
            body = overload(asked.rounds)
        case "streams":
            body = many_streams(asked.streams)
        case name:
            body = scripted(name, asked.rounds)
    return report(asked, [*heading(asked.name, asked.rounds), *body])


def fairness(asked: argparse.Namespace) -> list[str]:
    if asked.simulate:
        return simulated(asked.rounds, write=asked.write)
    only = asked.only.split(",") if asked.only else ()
    size = Size(asked.seats, asked.rounds, asked.seconds, asked.parallel, only)
    with worker_of(asked, asked.seats) as upstream:
        return measured(upstream, size, write=asked.write)


def on_a_worker(asked: argparse.Namespace, bench: Callable[[str, int], Iterator[str]]) -> Iterator[str]:
    with worker_of(asked) as upstream:
        yield from bench(upstream, asked.rounds)


@contextmanager
def worker_of(asked: argparse.Namespace, seats: int | None = None) -> Iterator[str]:
    """The address of the worker that was named, or of one of our own."""
    if asked.upstream:
        yield asked.upstream
        return
    with real_worker(asked.model or demo_model(), seats) as upstream:
        yield upstream


def demo_model() -> Path:
    """Made when it is not there yet, as by `./deskmate up`: half a minute."""
    folder = home_of(Path(ROOT), dict(os.environ)).demo_model
    subprocess.run([sys.executable, "-m", "worker.demo", str(folder)], cwd=ROOT, check=True)
    return folder


def report(asked: argparse.Namespace, lines: list[str]) -> int:
    print(json.dumps(lines, ensure_ascii=False) if asked.json else "\n".join(lines))
    if asked.write:
        path = Path(ROOT, "docs", f"bench-{asked.name}.md")
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
