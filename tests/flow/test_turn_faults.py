"""Turns when a part dies under them: the gateway, the worker, Redis. Real processes, killed by pid."""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

LONG = " word" * 120


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker(pace_ms=10, answer=LONG) as worker:
        yield worker


@pytest.fixture
def gateway(mortal_redis_server: RedisServer, worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(mortal_redis_server, worker.url) as gateway:
        yield gateway


async def begin_in_background(client: openai.AsyncOpenAI, worker: FakeWorker, **more: Any) -> str:
    response = await client.responses.create(input="tell me", background=True, **more)
    await worker.until(lambda w: w.generations and w.generations[-1].tokens_sent > 10)
    return response.id


async def ended(client: openai.AsyncOpenAI, id: str, within_seconds: float = 20.0) -> Any:
    async with asyncio.timeout(within_seconds):
        while (response := await client.responses.retrieve(id)).status == "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return response


async def test_after_a_killed_gateway_what_was_said_is_kept_and_the_conversation_goes_on(gateway, worker):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        conversation = await client.conversations.create()
        id = await begin_in_background(client, worker, conversation=conversation.id)
        gateway.stop(signal.SIGKILL)
        gateway.start()
        await gateway.until_ready()
        response = await ended(client, id)
        assert response.status == "failed" and response.error.code == "gateway_restarted"
        assert LONG.startswith(response.output_text) and len(response.output_text) > 20
        worker.script(pace_ms=0)
        after = await client.responses.create(input="go on", conversation=conversation.id)
        assert after.status == "completed"
        assert worker.generations[-1].body["messages"][2]["content"] == response.output_text


async def test_when_the_engine_dies_the_stream_says_so_and_keeps_what_it_has(gateway, worker):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        events = []
        async for event in await client.responses.create(input="tell me", stream=True):
            events.append(event)
            if len(events) == 20:
                worker.stop()
        assert events[-1].type == "response.failed" and events[-1].response.error.code == "engine_lost"
        seen = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert (await client.responses.retrieve(events[-1].response.id)).output_text == seen
        worker.start()
        worker.script(pace_ms=0)
        await gateway.until_ready()
        assert (await client.responses.create(input="again")).status == "completed"


async def test_an_answer_survives_the_death_of_redis(gateway, worker, mortal_redis_server):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        seen = ""
        killed = False
        async for event in await client.responses.create(input="tell me", stream=True):
            if event.type == "response.output_text.delta":
                seen += event.delta
                if len(seen) > 100 and not killed:
                    killed = True
                    mortal_redis_server.kill()
                    mortal_redis_server.start()
        assert killed and seen == LONG
        assert (await client.responses.retrieve(event.response.id)).output_text == LONG


async def test_while_redis_is_down_a_question_is_refused_and_not_answered_without_it(gateway, mortal_redis_server):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        mortal_redis_server.kill()
        with pytest.raises(openai.InternalServerError) as refused:
            await client.responses.create(input="anybody?")
        assert refused.value.status_code == 503 and refused.value.code == "storage_down"
        assert gateway.readyz() == 503
        mortal_redis_server.start()
        await gateway.until_ready()
        assert (await client.responses.create(input="anybody?", max_output_tokens=16)).output_text


async def test_a_gateway_that_is_asked_to_stop_lets_the_running_answer_end(gateway, worker):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        stream = await client.responses.create(input="tell me", stream=True)
        stopped = None
        async for event in stream:
            if event.type == "response.output_text.delta" and stopped is None:
                stopped = asyncio.create_task(asyncio.to_thread(gateway.stop))
        assert event.type == "response.completed" and event.response.output[0].content[0].text == LONG
        assert stopped is not None and await stopped == 0
