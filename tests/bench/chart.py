"""Small charts as SVG, the same bytes for the same numbers. Knows no benchmark.

Light and dark pages both show them: lines in two strong colours, text in grey, no background.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#1f78c1", "#e0752d", "#37872d", "#a352cc", "#c4162a", "#0a8f8f")
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 34, 44
GREY = "#888888"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis each way. `log`: the values stand by their orders of magnitude."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Points]
    log: bool = False


def svg(charts: Sequence[Chart]) -> str:
    """One picture, the charts below each other."""
    height = HEIGHT * len(charts)
    groups = [
        [f'<g transform="translate(0 {HEIGHT * nth})">', *_chart(chart), "</g>"] for nth, chart in enumerate(charts)
    ]
    drawn = "\n".join(line for group in groups for line in group)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'{head} font-family="sans-serif" font-size="12">\n{drawn}\n</svg>\n'


def _chart(chart: Chart) -> Iterator[str]:
    values = [value for points in chart.lines.values() for _, value in points]
    ends = [at for points in chart.lines.values() for at, _ in points]
    marks = _decades(values) if chart.log else _round_marks(max(values))
    first, last = min(ends), max(ends)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - first) / ((last - first) or 1)

    def y(value: float) -> float:
        low, high, value = marks[0], marks[-1], max(value, marks[0])
        share = math.log(value / low) / math.log(high / low) if chart.log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    yield _text(LEFT, 16, chart.title, "#4c8fd0", weight="bold")
    for mark in marks:
        yield f'<path d="M{LEFT} {y(mark):.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".3"/>'
        yield _text(LEFT - 6, y(mark) + 4, f"{mark:g}", GREY, anchor="end")
    for at in (first, (first + last) / 2, last):
        yield _text(x(at), HEIGHT - BOTTOM + 16, f"{at:.3g}", GREY, anchor="middle")
    yield _text(WIDTH - RIGHT, HEIGHT - 8, f"{chart.across} →", GREY, anchor="end")
    yield _text(WIDTH - RIGHT, 16, f"↑ {chart.up}", GREY, anchor="end")
    place = float(LEFT)
    for colour, (name, points) in zip(COLOURS, chart.lines.items(), strict=False):
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield _text(place, HEIGHT - 8, f"— {name}", colour)
        place += 7 * len(name) + 34


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{html.escape(text)}</text>"


def _round_marks(highest: float) -> list[float]:
    """From 0 to above the highest, in steps of 1, 2 or 5."""
    rough = (highest or 1) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    return [round(step * n, 9) for n in range(math.ceil(highest / step) + 1 if highest else 2)]


def _decades(values: Sequence[float]) -> list[float]:
    least = math.floor(math.log10(min(value for value in values if value > 0)))
    most = math.ceil(math.log10(max(values)))
    return [10.0**n for n in range(least, max(most, least + 1) + 1)]
