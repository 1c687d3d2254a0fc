"""What `./deskmate test` makes of tests that fail, shown with a real pytest on tests of their own."""

import sys
from pathlib import Path

import pytest

from deploy.checks import Check, Outcome, run_check, tried_again

SHAKY = """from pathlib import Path

def test_shaky():
    seen = Path(__file__).with_name("seen")
    before, _ = seen.exists(), seen.touch()
    assert before
"""
STEADY = "def test_steady():\n    pass\n"
WRONG = "import pytest\n\n@pytest.mark.parametrize('n', range({count}))\ndef test_wrong(n):\n    assert False\n"


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = (sys.executable, "-m", "pytest", "-p", "no:valkey", "-p", "no:schemathesis", "-q")

    def run(*tests: str) -> tuple[Outcome, Outcome]:
        for number, test in enumerate(tests):
            (tmp_path / f"test_{number}.py").write_text(test)
        check = Check("pytest", command)
        first = run_check(tmp_path, check)
        return first, tried_again(tmp_path, check, first)

    return run


def test_a_test_that_passes_when_it_is_run_again_is_named_and_no_failure(run, capfd):
    first, second = run(STEADY, SHAKY)
    assert not first.passed
    assert second.passed
    assert second.unsteady == ["test_1.py::test_shaky"]
    assert "1 passed" in capfd.readouterr().out.partition("== pytest, again")[2]


def test_a_test_that_fails_again_is_a_failure(run):
    _, second = run(STEADY, SHAKY, WRONG.format(count=1))
    assert not second.passed
    assert second.unsteady == ()


def test_many_failures_are_no_bad_luck_and_not_run_again(run, capfd):
    first, second = run(STEADY, WRONG.format(count=4))
    assert second is first
    assert "again" not in capfd.readouterr().out


def test_a_run_that_fails_without_a_failed_test_is_a_failure(run):
    first, second = run("def broken(:\n")
    assert not first.passed
    assert not second.passed
