"""The workloads of `bench fairness`, played in virtual time: the figures are what the rules promise."""

import pytest

from tests.bench.chart import svg
from tests.bench.fair_engine import Calibrated, simulated
from tests.bench.simulate import batch, crash, estimates
from tests.bench.workloads import ALONE, FAIR, FIRST_COME, WORKLOADS, Setting, pictures
from tests.line_simulation import Engine

AT = Setting(seats=10, rate=400.0, seconds=30.0)
ENGINE = Calibrated(
    Engine(overhead_ms=15.0, token_ms=0.5, prompt_tokens_a_ms=5.0, step_tokens=256), AT.rate, 1.1, AT.long
)
PROMISED = {
    "FS2": ("Jain", 0.999, 1.0),
    "FS3": ("Jain", 0.999, 1.0),
    "FS6": ("share of who stayed", 0.45, 0.55),
    "FS7": ("share of the batch work", 0.05, 0.15),
}


@pytest.fixture(scope="module")
def played():
    return {one.name: simulated(one, ENGINE, AT) for one in WORKLOADS if one.virtual}


def rows_of(played, name):
    workload = next(one for one in WORKLOADS if one.name.startswith(name + " "))
    return list(workload.rows(played[workload.name]))


def test_each_workload_gives_a_figure_of_each_arm(played):
    for workload in WORKLOADS:
        if workload.virtual:
            rows = list(workload.rows(played[workload.name]))
            assert rows and all(FAIR in row.of and row.of.keys() <= set(workload.arms) for row in rows)


@pytest.mark.parametrize("name", PROMISED)
def test_what_is_promised_is_what_is_played(played, name):
    figure, least, most = PROMISED[name]
    row = next(row for row in rows_of(played, name) if row.figure.startswith(figure))
    assert least <= row.of[FAIR] <= most


def test_light_people_wait_much_less_than_in_one_line(played):
    waits = next(row for row in rows_of(played, "FS1") if row.figure == "light TTFT p95 s").of
    assert waits[ALONE] < waits[FAIR] < waits[FIRST_COME] / 10


@pytest.mark.parametrize("case", [batch, crash, estimates])
def test_the_long_simulations_reach_their_goals(case):
    assert all(row.reached in (True, None) for row in case([1]))


def test_the_pictures_have_a_line_for_each_arm(played):
    first, second = (next(pictures(played[workload.name])) for workload in WORKLOADS[:2])
    assert [*first.lines] == [*WORKLOADS[0].arms]
    assert [*second.lines] == [*WORKLOADS[1].arms, "bound"]
    assert svg([first, second]).count("stroke-width") == len(first.lines) + len(second.lines)
