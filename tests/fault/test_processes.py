"""A process dies, hangs or is restarted in the middle of answers: F01, F02, F03, F04, F18, F19, F33."""

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.fault.checker import check
from tests.fault.desk import Desk
from tests.fault.history import Question
from tests.fault.people import Person, people

pytestmark = pytest.mark.asyncio(loop_scope="session")

REFUSED_SECONDS = 2.0  # the promise is one; the rest is this machine's


async def test_eight_answers_go_on_when_their_worker_is_killed(desk: Desk):
    await desk.play(pace_ms=60)
    async with people(desk, 8) as crowd:
        conversations = [await person.converse() for person in crowd]
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd, conversations, strict=True)]
        await desk.workers[0].until_answering(8)
        await desk.nemesis.kill_worker(away_seconds=0.5)
        answered = await asyncio.gather(*asking)
        assert [question.end for question in answered] == ["response.completed"] * 8
        assert await check(desk) == []


async def test_answers_go_on_when_their_worker_hangs_and_when_it_comes_back(desk: Desk):
    """F02: it is noticed by its silence, and what it says after that is not heard twice."""
    await desk.play(pace_ms=60)
    async with people(desk, 4) as crowd:
        conversations = [await person.converse() for person in crowd]
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd, conversations, strict=True)]
        await desk.workers[0].until_answering(4)
        async with desk.nemesis.frozen("worker"):
            await until(lambda: all(says(question, b"engine_lost") for question in desk.history.questions))
        answered = await asyncio.gather(*asking)
        assert [question.end for question in answered] == ["response.completed"] * 4
        assert await check(desk) == []


async def test_answers_of_a_killed_gateway_go_on_at_the_other_byte_for_byte(desk: Desk):
    """F03. The killed one stays away: the other one adopts its turns within the lease and a moment."""
    await desk.play(pace_ms=60)
    async with people(desk, 8) as crowd:
        conversations = [await person.converse() for person in crowd]
        for person in crowd:
            person.at = 0
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd, conversations, strict=True)]
        await desk.workers[0].until_answering(8)
        await desk.nemesis.kill_gateway(0, back=False)
        answered = await asyncio.gather(*asking)
        for person, question in zip(crowd, answered, strict=True):
            assert question.end == "response.completed" and says(question, b"resuming")
            seen = b"".join(question.events[number] for number in sorted(question.events))
            assert await person.replay(question) == seen
        assert await check(desk) == []


async def test_redis_killed_under_load_loses_nothing_and_questions_are_refused_within_a_second(desk: Desk):
    """F04: running answers are kept back and shown when it is there again; new questions hear 503 at once."""
    await desk.play(pace_ms=60)
    async with people(desk, 8) as crowd:
        conversations = [await person.converse() for person in crowd]
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd[:6], conversations, strict=False)]
        await desk.workers[0].until_answering(6)
        await desk.nemesis.kill_redis(back=False)
        began = time.monotonic()
        status, body = await crowd[7].call("POST", "/v1/responses", {"input": "anybody?"})
        assert (status, body["error"]["code"]) == (503, "storage_down") and time.monotonic() - began < REFUSED_SECONDS
        late = asyncio.create_task(crowd[6].ask(conversations[6]))  # asks until it is taken
        await asyncio.sleep(0.5)
        await asyncio.to_thread(desk.redis.start)
        answered = await asyncio.gather(*asking, late)
        assert [question.end for question in answered] == ["response.completed"] * 7
        assert await check(desk) == []


async def test_when_everything_is_killed_at_once_nothing_that_was_acknowledged_is_lost(desk: Desk):
    """F33: the power is cut in the middle of eight answers."""
    await desk.play(pace_ms=60)
    async with people(desk, 8) as crowd:
        conversations = [await person.converse() for person in crowd]
        before = [await person.ask(where) for person, where in zip(crowd, conversations, strict=True)]
        asking = [asyncio.create_task(p.ask(c)) for p, c in zip(crowd, conversations, strict=True)]
        await desk.workers[0].until_answering(8)
        for process in (*desk.gateways, *desk.workers, desk.redis):
            process.process.send_signal(signal.SIGKILL)  # type: ignore[union-attr]
        desk.redis.kill()
        await desk.heal()
        answered = await asyncio.gather(*asking)
        assert [question.end for question in (*before, *answered)] == ["response.completed"] * 16
        assert await check(desk) == []


async def test_a_rolling_restart_of_gateways_and_worker_is_an_error_for_nobody(desk: Desk):
    """F18 and F19: everything is asked to stop once while eight people ask on and on."""
    await desk.play(pace_ms=10)
    over = asyncio.Event()
    async with people(desk, 8) as crowd:
        asking = [asyncio.create_task(ask_on_and_on(person, over)) for person in crowd]
        for number in range(2):
            await desk.nemesis.restart_gateway(number)
        desk.history.fault("worker restarted")
        await asyncio.to_thread(desk.workers[0].stop)
        await asyncio.to_thread(desk.workers[0].start)
        await asyncio.sleep(1)
        over.set()
        await asyncio.gather(*asking)
        assert len(desk.history.questions) >= 8
        assert {question.end for question in desk.history.questions} == {"response.completed"}
        assert await check(desk) == []


async def ask_on_and_on(person: Person, over: asyncio.Event) -> None:
    conversation = await person.converse()
    while not over.is_set():
        await person.ask(conversation)


def says(question: Question, state: bytes) -> bool:
    return any(b'"state":"%b"' % state in event for event in question.events.values())


async def until(true: Callable[[], bool], within_seconds: float = 30.0) -> None:
    async with asyncio.timeout(within_seconds):
        while not true():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
