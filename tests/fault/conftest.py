"""One installation for all fault tests of the short form, healed between two tests."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.fault.desk import Desk
from tests.fault.desk import desk as made_desk


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_desk() -> AsyncIterator[Desk]:
    async with made_desk() as desk:
        yield desk


@pytest_asyncio.fixture(loop_scope="session")
async def desk(shared_desk: Desk) -> Desk:
    await shared_desk.fresh()
    return shared_desk
