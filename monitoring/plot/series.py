"""Asks a Prometheus for what a panel shows over a time: names and points. Knows neither pictures nor dashboards."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

STEPS = 240  # points of one curve, as many as its picture can show


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in seconds since 1970."""

    begin: float
    end: float

    @property
    def step(self) -> float:
        return max(1.0, round((self.end - self.begin) / STEPS))


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: its legend and its points (seconds since 1970, value), none where there was no value."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def series(self, query: str, legend: str, span: Span) -> list[Series]:
        """Every curve of a query. Raises OSError when Prometheus does not answer, or refuses the query."""
        asked = {"query": query, "start": span.begin, "end": span.end, "step": span.step}
        try:
            with urlopen(f"{self.url}/api/v1/query_range?{urlencode(asked)}", timeout=30) as response:
                found: list[dict[str, Any]] = json.load(response)["data"]["result"]
        except HTTPError as refusal:
            refusal.close()  # else its socket is left to the garbage collector
            raise
        every = [Series(named(legend, one["metric"]), points(one["values"])) for one in found]
        return sorted((one for one in every if one.points), key=lambda one: one.name)


def points(values: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    numbers = ((at, float(text)) for at, text in values)
    return [(at, value) for at, value in numbers if math.isfinite(value)]


def named(legend: str, labels: Mapping[str, str]) -> str:
    """Grafana's legend: `{{label}}` stands for a label's value, `__auto` for all of them."""
    if legend == "__auto":
        return ", ".join(value for label, value in sorted(labels.items()) if label != "__name__")
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend).strip()
