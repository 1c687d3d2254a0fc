"""The pictures of the benchmarks, and that the docs have those of today's workloads."""

from xml.etree import ElementTree

import pytest

from tests.bench.chart import Chart, svg
from tests.bench.fairness import BLOCK, PAGE, PICTURE, REAL_BLOCK, REAL_PICTURE
from tests.docs import blocks


@pytest.mark.parametrize("log", [False, True])
def test_a_picture_has_a_line_for_each_name_inside_its_frame(log):
    lines = {"one <1>": [(0, 1.0), (1, 20.0), (2, 300.0)], "other": [(0, 2.0), (2, 0.5)]}
    text = svg([Chart("waits & more", "seats", "s", lines, log), Chart("flat", "seats", "s", {"none": [(0, 0.0)]})])
    picture = ElementTree.fromstring(text)
    width, height = (float(picture.attrib[name]) for name in ("width", "height"))
    drawn = [path.attrib["d"] for path in picture.iter() if path.attrib.get("stroke-width")]
    assert len(drawn) == 3
    for point in [pair for path in drawn for pair in path.removeprefix("M").split("L")]:
        x, y = map(float, point.split())
        assert 0 <= x <= width and 0 <= y <= height
    assert {"— one <1>", "— other"} <= {node.text for node in picture.iter()}


@pytest.mark.parametrize(("block", "picture"), [(BLOCK, PICTURE), (REAL_BLOCK, REAL_PICTURE)])
def test_the_docs_show_every_workload_and_its_picture(block, picture):
    table = blocks.read(PAGE, block)
    assert [number for number in range(1, 12) if f"| FS{number} " not in table] == []
    assert f"({picture.name})" in PAGE.read_text() and ElementTree.parse(picture).getroot().tag.endswith("svg")
