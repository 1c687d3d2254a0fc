"""What lies between the parts breaks: lost replies, slowness, a full Redis, many at once. F05 to F11, F16."""

import asyncio
import resource
import time
from contextlib import suppress

import pytest
import redis

from tests.fault.checker import check, settle
from tests.fault.desk import Desk
from tests.fault.people import Person, people

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROUND_TRIP = 0.2


async def test_with_every_twentieth_reply_of_redis_lost_nothing_is_there_twice_or_missing(desk: Desk):
    """F06. Naively retried, every lost reply of a write is a duplicate."""
    await desk.play(pace_ms=2)
    async with people(desk, 10) as crowd:
        conversations = [await person.converse() for person in crowd]
        async with asyncio.timeout(60), desk.nemesis.losing(desk.redis_wire, "Redis", 0.05):
            before = desk.redis_wire.lost
            while desk.redis_wire.lost - before < 20:  # chance decides how many a question loses
                await asyncio.gather(*(several(p, c, 2) for p, c in zip(crowd, conversations, strict=True)))
        assert [q for q in desk.history.questions if not q.acknowledged and q.refused == "gave_up"] == []
        assert await check(desk) == []


async def test_with_lost_answers_of_the_gateways_a_question_that_is_posted_again_is_one_turn(desk: Desk):
    """F10: the person hears nothing, posts again with the same key, and is led to the turn that runs already."""
    await desk.play(pace_ms=2)
    async with people(desk, 10) as crowd:
        conversations = [await person.converse() for person in crowd]
        for door in desk.doors:
            door.lose_replies = True
        asking = [asyncio.create_task(several(p, c, 1)) for p, c in zip(crowd, conversations, strict=True)]
        await until_lost(desk, 20)
        await desk.heal()
        await asyncio.gather(*asking)
        posts = [call for call in desk.history.calls if call.what == "POST /v1/responses"]
        assert len(posts) >= 2 * len(crowd) == 2 * len([q for q in desk.history.questions if q.acknowledged])
        assert await check(desk) == []


async def until_lost(desk: Desk, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(door.lost for door in desk.doors) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def test_a_slow_redis_slows_what_is_shown_by_its_own_time_only(desk: Desk):
    """F07: nothing is shown that is not logged, so each burst waits for one round trip; and nothing is refused."""
    await desk.play(pace_ms=10)
    async with people(desk, 4) as crowd:
        conversations = [await person.converse() for person in crowd]
        async with desk.nemesis.slow(desk.redis_wire, "Redis", ROUND_TRIP):
            began = time.monotonic()
            answered = await asyncio.gather(*(p.ask(c) for p, c in zip(crowd, conversations, strict=True)))
            seconds = time.monotonic() - began
        assert [question.end for question in answered] == ["response.completed"] * 4
        statuses = {call.status for call in desk.history.calls if call.what == "POST /v1/responses"}
        assert statuses == {200}
        print(f"four answers at once with a Redis of {ROUND_TRIP} s: {seconds:.1f} s")
        assert await check(desk) == []


async def test_a_redis_that_does_not_answer_shuts_the_door_after_two_seconds_and_opens_it_by_itself(desk: Desk):
    """F07, the breaker."""
    async with people(desk, 3) as (one, other, third):
        conversation = await third.converse()
        async with desk.nemesis.stalled(desk.redis_wire, "Redis"):
            assert (await one.call("POST", "/v1/responses", {"input": "first"}))[0] == 503
            began = time.monotonic()
            one.at = other.at = 0
            answers = [await other.call("POST", "/v1/responses", {"input": "later"}) for _ in range(3)]
            assert {status for status, _ in answers} == {503} and time.monotonic() - began < 5
        assert (await third.ask(conversation)).end == "response.completed"
        assert await check(desk) == []


async def test_a_full_redis_refuses_questions_whole_and_is_used_again_when_there_is_room(desk: Desk):
    """F08. What runs is kept back and goes on; reading, stopping and deleting work all the while."""
    await desk.play(pace_ms=60)
    async with people(desk, 4) as crowd:
        conversations = [await person.converse() for person in crowd]
        before = await crowd[0].ask(conversations[0])
        asking = asyncio.create_task(crowd[1].ask(conversations[1]))
        await desk.workers[0].until_answering(1)
        desk.redis.admin("CONFIG", "SET", "maxmemory", 1)
        desk.history.fault("Redis full")
        body = {"input": "one more", "conversation": conversations[2]}
        status, refused = await crowd[2].call("POST", "/v1/responses", body)
        assert (status, refused["error"]["code"]) == (503, "storage_full")
        assert len(await crowd[0].items(conversations[0])) == 2
        assert await crowd[0].stop(before) == 200
        assert await crowd[0].delete(conversations[0])
        desk.redis.admin("CONFIG", "SET", "maxmemory", 0)
        assert (await asking).end == "response.completed"
        assert (await crowd[2].ask(conversations[2])).end == "response.completed"
        assert await check(desk) == []


@pytest.mark.parametrize("policy", ["everysec", "always"])
async def test_a_full_disk_of_redis_refuses_questions_and_loses_nothing_that_was_acknowledged(desk: Desk, policy: str):
    """F09. With `always` Redis ends rather than acknowledge what it cannot keep; it is started again."""
    async with people(desk, 3) as (one, other, third):
        conversations = [await person.converse() for person in (one, other, third)]
        await one.ask(conversations[0])
        desk.redis.admin("CONFIG", "SET", "appendfsync", policy)
        size = max(file.stat().st_size for file in desk.redis.folder.rglob("*.aof"))
        assert desk.redis.process
        resource.prlimit(desk.redis.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        desk.history.fault("disk of Redis full")
        body = {"input": "one more", "conversation": conversations[1]}
        answers = [await other.call("POST", "/v1/responses", body) for _ in range(5)]
        expected = "storage_full" if policy == "everysec" else "storage_down"
        assert answers[-1][0] == 503 and answers[-1][1]["error"]["code"] == expected
        if policy == "everysec":
            assert len(await one.items(conversations[0])) == 2
            resource.prlimit(desk.redis.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        else:
            assert desk.redis.process.wait(10) != 0
            desk.redis.kill()
        await desk.heal()
        assert (await third.ask(conversations[2])).end == "response.completed"
        assert await check(desk) == []


KEYS, PART = 200_000, 10_000


def fill(desk: Desk, command: str) -> None:
    """A command for each of the keys, in parts: one long script would be a fault of its own."""
    for first in range(0, KEYS, PART):
        desk.redis.admin("EVAL", f"for n = {first}, {first + PART - 1} do redis.call({command}) end", 0)


async def test_while_redis_loads_its_data_everything_is_refused_and_nothing_breaks(desk: Desk):
    """F05, its small form."""
    async with people(desk, 2) as (one, other):
        conversation = await one.converse()
        before = await one.ask(conversation)
        await asyncio.to_thread(fill, desk, "'SET', 'filler:' .. n, string.rep('x', 200)")
        await desk.nemesis.kill_redis(back=False)
        starting = asyncio.create_task(asyncio.to_thread(desk.redis.start))
        refused = set()
        while not starting.done():
            status, body = await other.call("POST", "/v1/responses", {"input": "already?"})
            refused.add((status, body["error"]["code"] if status != 200 else None))
            ready = await asyncio.to_thread(desk.gateways[0].readyz)
            assert ready in (200, 503)
        await starting
        assert (503, "storage_down") in refused and {status for status, _ in refused} <= {200, 503}
        await desk.heal()
        assert await one.replay(before) == b"".join(before.events[number] for number in sorted(before.events))
        assert (await one.ask(conversation)).end == "response.completed"
        await asyncio.to_thread(fill, desk, "'UNLINK', 'filler:' .. n")
        with suppress(redis.ResponseError):  # one is under way already
            desk.redis.admin("BGREWRITEAOF")
        assert await check(desk) == []


@pytest.mark.parametrize("beside", ["nothing", "a branch", "a deletion"])
async def test_of_32_tabs_that_ask_one_conversation_at_once_one_wins_and_the_others_learn_the_version(
    desk: Desk, beside: str
):
    """F11, through two gateways."""
    async with people(desk, 1) as (person,):
        conversation = await person.converse()
        first = await person.ask(conversation)
        await desk.play(pace_ms=60)
        asked = [person.question(conversation) for _ in range(32)]
        posts = []
        for number, question in enumerate(asked):
            person.at = number
            posts.append(asyncio.create_task(person.post(question, leave_after=1)))
            await asyncio.sleep(0)  # it has chosen its gateway
            if number == 8 and beside == "a branch":
                posts.append(asyncio.create_task(person.branch(first)))
            if number == 8 and beside == "a deletion":
                posts.append(asyncio.create_task(person.delete(conversation)))
        done = await asyncio.gather(*posts)
        winners = [question for question in asked if question.acknowledged]
        refused = {question.refused for question in asked if not question.turns}
        if True in done:
            assert not winners and refused <= {"not_found"}
        else:
            assert len(winners) == 1 and refused == {"conversation_locked"}
            await person.follow(winners[0])
        conflicts = [call for call in desk.history.calls if call.status == 409]
        assert len(conflicts) >= 31 * (True not in done)
        assert await check(desk) == []


async def test_when_every_stream_breaks_at_once_all_are_back_within_seconds(desk: Desk):
    """F16, its small form: both gateways are killed at once."""
    await desk.play(pace_ms=100)
    async with people(desk, 20) as crowd:
        conversations = [await person.converse() for person in crowd]
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd, conversations, strict=True)]
        await desk.workers[0].until_answering(20, tokens=2)
        await asyncio.gather(*(desk.nemesis.kill_gateway(number) for number in range(2)))
        await desk.play(pace_ms=5)
        answered = await asyncio.gather(*asking)
        assert {question.end for question in answered} == {"response.completed"}
        back = sorted(second for question in answered for second in question.resumed)
        print(f"{len(back)} streams came back, the last after {back[-1]:.1f} s")
        assert await check(desk) == []


async def several(person: Person, conversation: str, count: int) -> None:
    for _ in range(count):
        await person.ask(conversation)
        await settle_if_refused(person)


async def settle_if_refused(person: Person) -> None:
    """A question that was given up may still be answered: the next one waits for that."""
    if person.desk.history.questions[-1].refused:
        await settle(person.desk)
