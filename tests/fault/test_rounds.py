"""The long form: `--fault-rounds 10000` and `--real-kills 220`. Each test fills its block of docs/reliability.md.

Runs only when asked for (`LONG_FORM` in conftest.py), and then alone.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.fault.calm import run_calm
from tests.fault.desk import desk
from tests.fault.mix import run
from tests.fault.real import RealWorker, run_real
from tests.gateway_process import ROOT
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

REPORT = ROOT / "docs" / "reliability.md"
ENOUGH = {"fault-times": 10_000, "fault-rounds": 10_000, "real-kills": 200}  # fewer are a try, and no figure


async def test_one_fault_at_a_time_is_over_soon(pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        async with desk(gateways=2, workers=2) as made:
            calm = await run_calm(made)
        report("fault-times", pytestconfig.getoption("--fault-rounds"), calm.table())
    assert calm.breaches == []


async def test_people_go_on_through_every_fault(pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]):
    faults = pytestconfig.getoption("--fault-rounds")
    with capsys.disabled():
        async with desk(gateways=2, workers=2) as made:
            tally = await run(made, faults, seed=pytestconfig.getoption("--fault-seed"))
        report("fault-rounds", faults, tally.table())
    assert tally.breaches == []
    assert tally.acknowledged and tally.completed


@pytest.mark.engine
async def test_answers_of_a_real_engine_survive_every_kill(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert pytestconfig.cache is not None
    model = make_tiny_model(pytestconfig.cache.mkdir("models") / "tiny-qwen2")
    with capsys.disabled():
        async with desk(workers=[RealWorker(tmp_path / str(number), model) for number in range(2)]) as made:
            kept = await run_real(made, pytestconfig.getoption("--real-kills"))
        report("real-kills", kept.gateways, kept.table())
    assert kept.breaches == []
    assert kept.whole == kept.answers > 0


def report(name: str, count: int, lines: Iterable[str]) -> None:
    """Print the lines, and put them where the document keeps this name's figures."""
    text = "\n".join(lines)
    print(f"\n{text}")
    if count < ENOUGH[name]:
        return
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    REPORT.write_text(block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", REPORT.read_text()))
