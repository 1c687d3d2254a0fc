"""One installation for all fault tests of the short form, healed between two tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fault.desk import Desk
from tests.fault.desk import desk as made_desk

STEPS = "test_whatever_people_and_faults_do_in_whatever_order_every_invariant_holds"
REQUESTS = "test_no_request_of_any_form_meets_a_mistake_of_ours"
LINE = "test_the_line_in_redis_does_what_its_model_does_whatever_happens"
CANCELS = {"test_whoever_leaves_gives_back_everything", "test_whoever_leaves_the_line_leaves_no_gap_in_it"}
OPEN_WEBUI = "test_open_webui_chats_stops_and_regenerates_and_its_people_are_people_here"
LONG_FORM = {
    "--open-webui": {OPEN_WEBUI},
    "--fault-examples": {STEPS},
    "--any-requests": {REQUESTS},
    "--line-examples": {LINE},
    "--cancels": CANCELS,
    "--fault-rounds": {"test_one_fault_at_a_time_is_over_soon", "test_people_go_on_through_every_fault"},
    "--real-kills": {"test_answers_of_a_real_engine_survive_every_kill"},
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long form runs only when asked for, and then alone."""
    asked = set[str]().union(*(tests for option, tests in LONG_FORM.items() if config.getoption(option)))
    unasked = set[str]().union(*LONG_FORM.values()) - {STEPS, REQUESTS, LINE} - CANCELS
    named = [(item, getattr(item, "originalname", item.name)) for item in items]
    chosen = [item for item, name in named if (name in asked if asked else name not in unasked)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_desk() -> AsyncIterator[Desk]:
    async with made_desk() as desk:
        yield desk


@pytest_asyncio.fixture(loop_scope="session")
async def desk(shared_desk: Desk) -> Desk:
    await shared_desk.fresh()
    return shared_desk
