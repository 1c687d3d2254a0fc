"""Draws a dashboard as one page: HTML with SVG, for people who have no Grafana. Knows Grafana's JSON, no metric."""

import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.plot.series import Series, Span
from monitoring.plot.units import marks, shown

WIDTH, CELL = 1440, 33  # pixels of the page, and of one row of Grafana's grid
COLOURS = ("#1f78c1", "#e0752d", "#37872d", "#a352cc", "#c4162a", "#0a8f8f", "#8a6d1b", "#5a6570", "#d44a9a", "#6b7f00")
APART = (60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800, 2592000, math.inf)  # seconds between times
LEFT, RIGHT, TOP, BOTTOM = 70, 10, 8, 20  # margins inside a picture
STYLE = Path(__file__).with_name("page.css")

Points = Sequence[tuple[float, float]]
Ask = Callable[[str, str], list[Series]]  # a query and its legend


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, as a line through all pictures."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Where values stand in a picture: `x` and `y` turn time and value into pixels."""

    width: int
    height: int
    span: Span
    highest: float

    def x(self, at: float) -> float:
        inside = self.width - LEFT - RIGHT
        return LEFT + inside * (at - self.span.begin) / (self.span.end - self.span.begin)

    def y(self, value: float) -> float:
        inside = self.height - TOP - BOTTOM
        return TOP + inside * (1 - min(max(value / self.highest, 0), 1.02))


def page(dashboard: Mapping[str, Any], ask: Ask, span: Span, happened: Sequence[Mark] = ()) -> str:
    """The whole page. What `ask` raises goes on."""
    cards = "\n".join(card(panel, ask, span, happened) for panel in dashboard["panels"])
    begin, end = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) for at in (span.begin, span.end))
    notes = "".join(f" · <b>{number}</b> {html.escape(mark.text)}" for number, mark in enumerate(happened, 1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(dashboard["title"])}</title>'
        f"<style>{STYLE.read_text()}</style><header><h1>{html.escape(dashboard['title'])}</h1>"
        f"<p>{html.escape(dashboard['description'])}<br>{begin} to {end} UTC{notes}</p></header>"
        f"<main>{cards}</main></html>\n"
    )


def card(panel: Mapping[str, Any], ask: Ask, span: Span, happened: Sequence[Mark]) -> str:
    if panel["type"] == "row":
        return f"<h3>{html.escape(panel['title'])}</h3>"
    series = [one for target in panel["targets"] for one in ask(target["expr"], target["legendFormat"])]
    drawn = EMPTY
    if series:
        drawn = numbers(panel, series) if panel["type"] == "stat" else curves(panel, series, span, happened)
    return (
        f'<section style="grid-column: span {panel["gridPos"]["w"]}"><h2>{html.escape(panel["title"])}</h2>'
        f"<p>{html.escape(panel['description'])}</p>{drawn}</section>"
    )


EMPTY = '<div class="empty">no data · 无数据</div>'


# numbers --------------------------------------------------------------------------------------------------------------


def numbers(panel: Mapping[str, Any], series: Sequence[Series]) -> str:
    """The last value of each series, in the colour of its threshold."""
    defaults, named = panel["fieldConfig"]["defaults"], panel["options"]["textMode"] == "value_and_name"
    values = "".join(
        f'<div>{label(one.name if named else "")}<b style="color: {colour(one.points[-1][1], defaults)}">'
        f"{html.escape(words(one.points[-1][1], defaults))}</b></div>"
        for one in series
    )
    return f'<div class="numbers{" many" if len(series) > 1 else ""}">{values}</div>'


def label(name: str) -> str:
    return f"<span>{html.escape(name)}</span>" if name else ""


def words(value: float, defaults: Mapping[str, Any]) -> str:
    for mapping in defaults.get("mappings", ()):
        if (found := mapping["options"].get(f"{value:g}")) is not None:
            return str(found["text"])
    return shown(value, defaults["unit"])


def colour(value: float, defaults: Mapping[str, Any]) -> str:
    reached = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    return {"green": "#2f8132", "red": "#c4162a"}.get(reached[-1]["color"], "#b5860b")


# curves ---------------------------------------------------------------------------------------------------------------


def curves(panel: Mapping[str, Any], series: Sequence[Series], span: Span, happened: Sequence[Mark]) -> str:
    defaults, filled = panel["fieldConfig"]["defaults"], is_stacked(panel)
    if filled:  # what is zero all the time adds nothing
        series = [one for one in series if any(value for _, value in one.points)] or series[:1]
    layers = stacked(series) if filled else [one.points for one in series]
    highest = max(value for layer in layers for _, value in layer)
    axis = marks(defaults.get("max") or highest or 1.0, defaults["unit"])
    scene = Scene(round(WIDTH * panel["gridPos"]["w"] / 24) - 46, panel["gridPos"]["h"] * CELL - 90, span, axis[-1])
    behind = [grid(scene, axis, defaults["unit"])]
    behind += [threshold(scene, step) for step in defaults["thresholds"]["steps"]]
    areas = [area(scene, layer, layers[n - 1] if n else (), n) for n, layer in enumerate(layers) if filled]
    lines = [line(scene, layer, n) for n, layer in enumerate(layers)]
    flags = [flag(scene, mark, n) for n, mark in enumerate(happened, 1)]
    legend = "".join(entry(one, n, defaults["unit"]) for n, one in enumerate(series))
    drawn = "".join([*behind, *areas, *lines, *flags])
    return f'<svg width="{scene.width}" height="{scene.height}">{drawn}</svg><ul>{legend}</ul>'


def is_stacked(panel: Mapping[str, Any]) -> bool:
    return bool(panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal")


def stacked(series: Sequence[Series]) -> list[list[tuple[float, float]]]:
    """Each curve on top of those before it; one that has no value adds none."""
    times = sorted({at for one in series for at, _ in one.points})
    below = dict.fromkeys(times, 0.0)
    layers = []
    for one in series:
        own = dict(one.points)
        below = {at: below[at] + own.get(at, 0.0) for at in times}
        layers.append(list(below.items()))
    return layers


def grid(scene: Scene, axis: Sequence[float], unit: str) -> str:
    right, foot = scene.width - RIGHT, scene.height - BOTTOM
    parts = [f'<text x="{LEFT - 6}" y="{scene.y(at) + 3.5:.1f}" text-anchor="end">{shown(at, unit)}</text>'
             f'<path d="M{LEFT} {scene.y(at):.1f}H{right}" stroke="#d4d8de"/>' for at in axis]  # fmt: skip
    for at in minutes(scene.span):
        moment = time.strftime("%H:%M", time.gmtime(at))
        parts.append(f'<path d="M{scene.x(at):.1f} {TOP}V{foot}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{scene.x(at):.1f}" y="{foot + 14}" text-anchor="middle">{moment}</text>')
    return "".join(parts)


def minutes(span: Span) -> list[float]:
    """Full minutes along the time, at most twelve of them."""
    apart = next(
        m for m in (60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800) if (span.end - span.begin) / m <= 12
    )
    first = -(-span.begin // apart) * apart
    return [first + apart * index for index in range(int((span.end - first) // apart) + 1)]


def threshold(scene: Scene, step: Mapping[str, Any]) -> str:
    if step["value"] is None or step["value"] > scene.highest:
        return ""
    shade = {"green": "#2f8132", "red": "#c4162a"}.get(step["color"], "#b5860b")
    return (
        f'<path d="M{LEFT} {scene.y(step["value"]):.1f}H{scene.width - RIGHT}" stroke="{shade}" '
        'stroke-dasharray="5 4" opacity="0.7"/>'
    )


def unbroken(scene: Scene, layer: Points) -> list[list[tuple[float, float]]]:
    """The curve in pieces: it has a gap where more than two points are missing."""
    pieces: list[list[tuple[float, float]]] = []
    for at, value in layer:
        if not pieces or at - pieces[-1][-1][0] > 2.5 * scene.span.step:
            pieces.append([])
        pieces[-1].append((at, value))
    return pieces


def way(scene: Scene, points: Points) -> str:
    return "L".join(f"{scene.x(at):.1f} {scene.y(value):.1f}" for at, value in points)


def line(scene: Scene, layer: Points, index: int) -> str:
    path = "".join(f"M{way(scene, piece)}" + "h1.5" * (len(piece) == 1) for piece in unbroken(scene, layer))
    shade = COLOURS[index % len(COLOURS)]
    return f'<path d="{path}" fill="none" stroke="{shade}" stroke-width="1.7" stroke-linejoin="round"/>'


def area(scene: Scene, layer: Points, below: Points, index: int) -> str:
    floor = dict(below)
    pieces = "".join(
        f"M{way(scene, piece)}L{way(scene, [(at, floor.get(at, 0.0)) for at, _ in reversed(piece)])}Z"
        for piece in unbroken(scene, layer)
    )
    return f'<path d="{pieces}" fill="{COLOURS[index % len(COLOURS)]}" opacity="0.25"/>'


def flag(scene: Scene, mark: Mark, number: int) -> str:
    x = scene.x(mark.at)
    return (
        f'<path d="M{x:.1f} {TOP}V{scene.height - BOTTOM}" stroke="#8d949e" stroke-dasharray="2 3"/>'
        f'<text x="{x + 3:.1f}" y="{TOP + 9}" font-weight="bold">{number}</text>'
    )


def entry(one: Series, index: int, unit: str) -> str:
    """A curve's name with its highest and last value."""
    highest, last = max(value for _, value in one.points), one.points[-1][1]
    return (
        f'<li><i style="background: {COLOURS[index % len(COLOURS)]}"></i>{html.escape(one.name)} '
        f"<em>max {shown(highest, unit)}, last {shown(last, unit)}</em></li>"
    )
