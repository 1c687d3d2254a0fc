"""What a dashboard and a panel are, and words that several share. Knows neither a metric nor Grafana's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GREEN, YELLOW, RED = "green", "#EAB839", "red"
Steps = Sequence[tuple[float | None, str]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are pairs of PromQL and legend; `steps` are thresholds: from which value on which colour."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    number: bool = False  # one big number per series, else curves
    steps: Steps = ((None, GREEN),)
    words: dict[str, str] | None = None
    stacked: bool = False
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Numbers stand four, curves three beside each other; a text among the panels is the title of those below it."""

    file: str
    title: str
    description: str
    panels: Sequence[Panel | str]


def number(title: str, description: str, query: str, legend: str = "", **more: Any) -> Panel:
    return Panel(title, description, [(query, legend)], number=True, **more)


def quantiles(recorded: str) -> list[tuple[str, str]]:
    """The two percentiles that monitoring/rules/recording.yml makes of a histogram."""
    return [(f'{recorded}{{quantile="{q}"}}', name) for q, name in (("0.5", "p50"), ("0.95", "p95"))]


DOWN_UP = {"0": "down · 停止", "1": "up · 正常"}
UP_STEPS: Steps = ((None, RED), (1, GREEN))
