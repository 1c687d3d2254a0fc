"""`bench fairness`: what was found, as tables and a picture; with `--write` they become part of the docs.

Knows no workload: those are in `simulate.py` and, for a real worker, in `workloads.py`.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.bench.chart import svg
from tests.bench.fair_engine import Size, on_engine
from tests.bench.simulate import END_MS, Report, simulate
from tests.bench.stack import ROOT
from tests.docs import blocks

PAGE, PICTURE = Path(ROOT, "docs", "fairness.md"), Path(ROOT, "docs", "fairness-simulated.svg")
BLOCK, REAL_BLOCK = "simulated", "measured"


def simulated(seeds: int, *, write: bool) -> list[str]:
    found = simulate(seeds)
    lines = list(table(found, seeds))
    if write:
        PICTURE.write_text(svg(found.charts), encoding="utf-8")
        blocks.put(PAGE, BLOCK, "\n".join(lines))
    return lines


def measured(upstream: str, size: Size, *, write: bool) -> list[str]:
    lines = list(on_engine(upstream, size))
    if write:
        blocks.put(PAGE, REAL_BLOCK, "\n".join(lines))
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
