"""What `python -m monitoring.plot` draws, from the numbers up to the page."""

import html
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from monitoring.plot.__main__ import DASHBOARDS, main
from monitoring.plot.page import Mark, page
from monitoring.plot.series import Series, Span, named
from monitoring.plot.units import SCALES, marks, shown

SPAN = Span(1_700_000_000, 1_700_000_600)
BOARDS = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, "s", "250 ms"),
        (90, "s", "1.5 min"),
        (0, "s", "0 s"),
        (0.0421, "percentunit", "4.21 %"),
        (1 << 30, "bytes", "1 GiB"),
        (1500, "short", "1.5 k"),
        (12, "short", "12"),
        (0.5, "reqps", "0.5 req/s"),
        (2_500_000, "Bps", "2.5 MB/s"),
    ],
)
def test_a_number_is_written_as_people_read_it(value, unit, text):
    assert shown(value, unit) == text


@pytest.mark.parametrize("unit", [*SCALES, "percentunit"])
@pytest.mark.parametrize("highest", [0, 0.0004, 0.07, 1, 7, 99, 100, 12_345, 5e9])
def test_an_axis_begins_at_zero_and_ends_above_the_highest(unit, highest):
    axis = marks(highest, unit)
    assert axis[0] == 0 and axis[-1] >= highest * 0.999 and 2 <= len(axis) <= 6
    assert len({shown(mark, unit) for mark in axis}) == len(axis)


def test_a_legend_is_filled_with_the_labels():
    assert named("{{process}} {{pid}}", {"process": "vllm", "pid": "7"}) == "vllm 7"
    assert named("__auto", {"__name__": "up", "job": "a", "instance": "b"}) == "b, a"
    assert named("in · 接收", {"job": "a"}) == "in · 接收"


@pytest.mark.parametrize("dashboard", BOARDS, ids=lambda board: board["uid"])
def test_every_panel_is_on_the_page_with_its_sentence_its_legend_and_a_curve(dashboard):
    asked = []

    def ask(query: str, legend: str) -> list[Series]:
        asked.append(query)
        return [Series(f"<{legend}>", [(SPAN.begin + 60 * minute, minute % 3) for minute in range(10)])]

    drawn = page(dashboard, ask, SPAN, [Mark(SPAN.begin + 300, "something & happened")])
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    curves = [panel for panel in panels if panel["type"] == "timeseries"]
    assert asked == [target["expr"] for panel in panels for target in panel["targets"]]
    for told in ("title", "description"):
        assert [panel[told] for panel in panels if f">{html.escape(panel[told])}<" not in drawn] == []
    assert drawn.count("<svg") == len(curves) and drawn.count("<li>") == sum(len(panel["targets"]) for panel in curves)
    assert "something &amp; happened" in drawn and "no data" not in drawn


def test_a_panel_without_data_says_so():
    assert page(BOARDS[0], lambda *_: [], SPAN).count("no data · 无数据") == len(BOARDS[0]["panels"])


def test_a_curve_has_a_gap_where_nothing_was_measured():
    def ask(query: str, legend: str) -> list[Series]:
        return [Series("", [(SPAN.begin + at, 1.0) for at in (0, 3, 6, 300, 303, 306)])]

    (path, *_) = [part for part in page(BOARDS[0], ask, SPAN).split("<path") if 'stroke-width="1.7"' in part]
    assert path.count("M") == 2


@pytest.fixture
def broken() -> Iterator[str]:
    """A Prometheus that refuses every query."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert parse_qs(urlparse(self.path).query)["query"]
            self.send_error(400)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_prometheus_that_refuses_is_named(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path), "--prometheus", broken]) == 1
    assert broken in capsys.readouterr().err
