"""A gateway's part of the line on real Redis, where replies overtake each other."""

import asyncio
from dataclasses import dataclass, field

import pytest

from gateway.admission import Ticket
from gateway.admission.line import Capacity, Line
from gateway.admission.queue import FairQueue
from gateway.errors import Busy
from gateway.redis_client import RedisClient

ONE = Capacity(1)


@dataclass(frozen=True)
class SlowLine(Line):
    """Joins at once, and its reply arrives when `arrives` is set."""

    arrives: asyncio.Event = field(default_factory=asyncio.Event)
    joined: asyncio.Event = field(default_factory=asyncio.Event)

    async def join(self, *args, **keywords):  # type: ignore[no-untyped-def]
        try:
            return await super().join(*args, **keywords)
        finally:
            self.joined.set()
            await self.arrives.wait()


@pytest.fixture
async def line(redis_client: RedisClient) -> SlowLine:
    return SlowLine(redis_client, "gw_one", longest=1)


@pytest.fixture
async def queue(line: SlowLine):
    queue = FairQueue(line, lambda: ONE)
    await queue.start()
    yield queue
    await queue.close()


async def seated(place) -> None:
    async with asyncio.timeout(10):
        async for _ in place.wait():
            pass


async def left(queue: FairQueue) -> None:
    async with asyncio.timeout(10):
        while (await queue.look()).flying:  # noqa: ASYNC110 - it stands in Redis
            await asyncio.sleep(0.01)


async def joined_behind_one_that_leaves(line: SlowLine, queue: FairQueue) -> asyncio.Task:  # type: ignore[type-arg]
    """Somebody who waits for the reply to their join; the reply to the other's leaving has told of their seat."""
    line.arrives.set()
    first = await queue.enqueue(Ticket("ada", 10, 10))
    line.arrives.clear()
    line.joined.clear()
    coming = asyncio.create_task(queue.enqueue(Ticket("bob", 10, 10)))
    await line.joined.wait()
    await first.release(1)
    return coming


async def test_a_seat_that_is_told_before_the_reply_to_the_join_is_taken(line: SlowLine, queue: FairQueue):
    coming = await joined_behind_one_that_leaves(line, queue)
    async with asyncio.timeout(10):
        while await line.redis.call("EXISTS", "dm:line:granted:gw_one"):  # noqa: ASYNC110 - it stands in Redis
            await asyncio.sleep(0.01)
    line.arrives.set()
    second = await coming
    await seated(second)
    assert queue.in_flight == 1
    await second.release(1)
    await left(queue)


async def test_whoever_gives_up_before_the_reply_leaves_nothing_behind(line: SlowLine, queue: FairQueue):
    coming = await joined_behind_one_that_leaves(line, queue)
    coming.cancel()
    await asyncio.wait([coming])
    await left(queue)
    assert (queue.in_flight, queue.waiting) == (0, 0)


async def test_who_is_refused_is_not_in_the_line(line: SlowLine, queue: FairQueue):
    line.arrives.set()
    places = [await queue.enqueue(Ticket("ada", 10, 10)) for _ in range(2)]
    with pytest.raises(Busy):
        await queue.enqueue(Ticket("ada", 10, 10))
    assert (queue.in_flight, queue.waiting) == (1, 1)
    for place in places:
        await place.release(1)
    await left(queue)


async def test_a_seat_that_nobody_wants_any_more_is_given_back(line: SlowLine, queue: FairQueue):
    line.arrives.set()
    await (await queue.enqueue(Ticket("ada", 10, 10))).release(1)
    await line.join(ONE, "of-somebody-who-has-gone", Ticket("ada", 10, 10))
    await left(queue)
