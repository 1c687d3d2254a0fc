"""The parsers that the worker chooses for thoughts are vLLM's, and go on with an answer that broke off anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.parsers_of_thoughts import CASES
from worker.parsers import THOUGHTS

ROOT = Path(__file__).parents[2]


@pytest.mark.engine
def test_the_parsers_of_thoughts_go_on_in_the_middle_of_an_answer() -> None:
    command = [sys.executable, "-m", "tests.e2e.parsers_of_thoughts"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_each_parser_that_may_be_chosen_is_tried() -> None:
    assert {parser for _, parser, _ in THOUGHTS} == {parser for parser, _, _ in CASES}
