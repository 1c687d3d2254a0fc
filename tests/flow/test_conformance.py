"""The figure in docs/api.md is the figure: every field that is never sent has a reason, and no reason is left over."""

import re
from collections.abc import AsyncIterator

import pytest

from tests.docs import blocks
from tests.fake_worker import FakeWorker
from tests.flow import conformance
from tests.flow.conformance import ABSENT, EVENTS, NEVER_SENT, OTHERWISE, Figure
from tests.gateway_process import GatewayProcess


@pytest.fixture
async def figure(ready: GatewayProcess, scripted: FakeWorker, person: str) -> AsyncIterator[Figure]:
    async with conformance.caller(ready, await ready.key(person)) as http:
        yield await conformance.measure(http, scripted)


async def test_the_figure_in_the_docs_is_what_the_sdks_types_say_of_real_answers(figure: Figure) -> None:
    listed = blocks.read(conformance.PAGE, conformance.BLOCK)
    assert listed == conformance.shown(figure), "run `python -m tests.flow.conformance`"
    assert figure.otherwise == {name for name, _, _ in OTHERWISE.values()}
    used = {
        f"{kind.__name__}.{name}"
        for kind in figure.kinds()
        for names in figure.missing(kind).values()
        for name in names
    }
    used |= {name.rpartition(".")[2] for name in used}
    assert set(ABSENT) - used == set(), "reasons for what is there"
    unsent = [kind.__name__ for kind in EVENTS.values() if kind not in figure.seen]
    assert [why for pattern, why in NEVER_SENT.items() if not any(re.search(pattern, name) for name in unsent)] == []


def test_what_is_not_of_its_type_is_no_part_of_the_figure() -> None:
    from openai.types import Model
    from pydantic import ValidationError

    figure = Figure()
    for wrong in (
        '{"id":"a","created":"1","object":"model","owned_by":"b"}',
        '{"id":"a","object":"model","owned_by":"b"}',
    ):
        with pytest.raises(ValidationError):
            figure.take(Model, wrong)
    assert not figure.seen
    figure.take(Model, '{"id":"a","created":1,"object":"model","owned_by":"b"}')
    assert figure.missing(Model) == {"none is planned": ["shutdown_date"]}
