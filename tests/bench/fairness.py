"""`bench fairness`: what was found, as tables and pictures; with `--write` they become part of the docs.

Knows no workload: those are in `simulate.py` and, for a real worker, in `workloads.py`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.admission.line import Capacity
from tests.bench.chart import Chart, svg
from tests.bench.fair_engine import Found, Size, on_engine
from tests.bench.simulate import END_MS, Report, simulate
from tests.bench.stack import ROOT
from tests.bench.workloads import ALONE, DIRECT, FAIR, FIRST_COME, ON_W, Row, pictures
from tests.docs import blocks

PAGE, PICTURE = Path(ROOT, "docs", "fairness.md"), Path(ROOT, "docs", "fairness-simulated.svg")
REAL_PICTURE = Path(ROOT, "docs", "fairness-measured.svg")
BLOCK, REAL_BLOCK = "simulated", "measured"
COLUMNS = (DIRECT, FIRST_COME, ON_W, FAIR, ALONE)
VIRTUAL = (FIRST_COME, FAIR)  # that are shown beside them
ALIKE = 0.2  # so far off simulation and run may be


# simulated ------------------------------------------------------------------------------------------------------------
def simulated(seeds: int, *, write: bool) -> list[str]:
    found = simulate(seeds)
    lines = list(table(found, seeds))
    if write:
        PICTURE.write_text(svg(found.charts), encoding="utf-8")
        blocks.put(PAGE, BLOCK, "\n".join(lines))
    return lines


def table(found: Report, seeds: int) -> Iterator[str]:
    minutes = END_MS // 60_000
    yield f"`./deskmate bench fairness --simulate`: {minutes} virtual minutes each, the first one cut, {seeds} seed(s)."
    yield ""
    yield "| workload | figure | goal | first-come | FQ1 | reached |"
    yield "|---|---|---|---|---|---|"
    yield from map(str, found.rows)
    yield ""
    yield "How many seats to keep:"
    yield ""
    yield from found.sweep


# measured -------------------------------------------------------------------------------------------------------------
def measured(upstream: str, size: Size, *, write: bool) -> list[str]:
    found = on_engine(upstream, size)
    lines = [*heading(found, size), "", *rows(found), "", *refusals(found), *alike(found)]
    if write:
        REAL_PICTURE.write_text(svg(charts(found)), encoding="utf-8")
        blocks.put(PAGE, REAL_BLOCK, "\n".join(lines))
    return lines


def heading(found: Found, size: Size) -> Iterator[str]:
    at, engine, kept = found.at, found.calibrated.engine, Capacity(found.at.seats).kept
    reading = 1000 * engine.prompt_tokens_a_ms
    whole = f"{size.rounds} round(s) of {size.seconds:.0f} s, arms in turn"
    yield f"A real worker with {at.seats} seats, {kept} of them kept; {at.rate:.0f} tokens/s with all of them taken. A"
    yield f"step takes {engine.overhead_ms:.1f} ms and {engine.token_ms:.2f} ms for each seat; prompts are read at"
    yield f"{reading:.0f} tokens/s, {engine.step_tokens} of them in a step. {whole}; requests of"
    yield f"{at.long} + {at.short} tokens, the heavy one of FS1 keeps {at.parallel} under way."


def rows(found: Found) -> Iterator[str]:
    beside = [f"simulated {arm}" for arm in VIRTUAL]
    yield f"| {' | '.join(('workload', 'figure', 'goal', *COLUMNS, 'reached', *beside))} |"
    yield "|---" * (4 + len(COLUMNS) + len(VIRTUAL)) + "|"
    for row, virtual in both(found):
        cells = [f"{row.of[arm]:{row.form}}" if arm in row.of else "–" for arm in COLUMNS]
        beside = [f"{virtual[arm]:{row.form}}" if arm in virtual else "–" for arm in VIRTUAL]
        reached = {None: "–", True: "yes", False: "**no**"}[row.reached]
        goal = row.goal[0] if row.goal else "–"
        yield f"| {' | '.join((row.workload, row.figure, goal, *cells, reached, *beside))} |"


def both(found: Found) -> Iterator[tuple[Row, Mapping[str, float]]]:
    """Each figure, and the same as simulated."""
    for workload, real, virtual in found.pairs:
        simulated = {row.figure: row.of for row in workload.rows(virtual)} if virtual.by else {}
        for row in workload.rows(real):
            yield row, simulated.get(row.figure, {})


def refusals(found: Found) -> Iterator[str]:
    """A figure of requests that were not answered says so."""
    for _, played, _ in found.pairs:
        for arm, people in played.by.items():
            refused = Counter(status for guests in people for status in guests.refused())
            for status, count in refused.items():
                what = "had no answer (the gateway was down)" if status == -1 else f"were refused with {status}"
                yield f"{played.name}, {arm}: {count} requests {what}."


def alike(found: Found) -> Iterator[str]:
    for arm in VIRTUAL:
        off = [
            row.of[arm] / virtual[arm] - 1
            for row, virtual in both(found)
            if arm in row.of and virtual.get(arm) and not row.is_ratio
        ]
        within = sum(abs(one) <= ALIKE for one in off)
        yield f"{arm}: {within} of {len(off)} figures are within {ALIKE:.0%} of the simulated ones."


def charts(found: Found) -> list[Chart]:
    return [chart for _, played, _ in found.pairs for chart in pictures(played)]
