"""Turns when a part dies under them: the gateway, the worker, Redis. Real processes, killed by pid."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from gateway.compaction import REQUEST
from tests.fake_worker import FakeWorker, tokenize
from tests.gateway_process import GatewayProcess
from tests.servers import RedisServer

LONG = " word" * 120


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker(pace_ms=20, answer=LONG) as worker:
        yield worker


@pytest.fixture
def gateway(mortal_redis_server: RedisServer, worker: FakeWorker) -> Iterator[GatewayProcess]:
    with GatewayProcess(mortal_redis_server, worker.url) as gateway:
        yield gateway


async def begin_in_background(client: openai.AsyncOpenAI, worker: FakeWorker, **more: Any) -> str:
    response = await client.responses.create(input="tell me", background=True, **more)
    await worker.until(lambda w: w.generations and w.generations[-1].tokens_sent > 10)
    return response.id


async def test_the_answer_of_a_killed_gateway_goes_on_byte_for_byte_and_so_does_the_conversation(gateway, worker):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        conversation = await client.conversations.create()
        id = await begin_in_background(client, worker, conversation=conversation.id)
        before = [event async for event in seen(client, id, until=20)]
        gateway.stop(signal.SIGKILL)
        gateway.start()
        after = [event async for event in seen(client, id, starting_after=before[-1].sequence_number)]
        numbers = [event.sequence_number for event in [*before, *after]]
        assert numbers == list(range(len(numbers))) and words([*before, *after]) == LONG
        assert "resuming" in [event.state for event in after if event.type == "deskmate:progress"]
        response = await client.responses.retrieve(id)
        assert response.status == "completed" and response.output_text == LONG
        assert response.usage.output_tokens == len(tokenize(LONG)) + 1
        worker.script(pace_ms=0)
        after = await client.responses.create(input="go on", conversation=conversation.id)
        assert after.status == "completed"
        assert worker.generations[-1].body["messages"][2]["content"] == LONG


async def seen(client: openai.AsyncOpenAI, id: str, until: int | None = None, **more: Any) -> AsyncIterator[Any]:
    """The events of a response's stream; `until`: leave after so many."""
    count = 0
    async with await client.responses.retrieve(id, stream=True, **more) as stream:
        async for event in stream:
            yield event
            count += 1
            if count == until:
                return


def words(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_when_the_engine_dies_the_same_stream_says_so_and_the_same_answer_goes_on(gateway, worker):
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        events = []
        async for event in await client.responses.create(input="tell me", stream=True):
            events.append(event)
            if len(events) == 20:
                worker.stop()
            if getattr(event, "state", "") == "engine_lost":
                worker.start()
        assert events[-1].type == "response.completed" and words(events) == LONG
        states = [event.state for event in events if event.type == "deskmate:progress"]
        assert states == ["engine_lost", "resuming"]
        assert (await client.responses.retrieve(events[-1].response.id)).output_text == LONG


async def test_a_call_that_was_being_written_when_its_gateway_was_killed_is_written_again_unseen(gateway, worker):
    tool: Any = {"type": "function", "name": "f", "parameters": None, "strict": None}
    worker.script(answer="I look.\n", tools=[{"name": "f", "arguments": {"a": "x" * 200}}], pace_ms=10)
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        id = await begin_in_background(client, worker, tools=[tool], tool_choice="required")
        before = [event async for event in seen(client, id, until=6)]
        gateway.stop(signal.SIGKILL)
        gateway.start()
        after = [event async for event in seen(client, id, starting_after=before[-1].sequence_number)]
        numbers = [event.sequence_number for event in [*before, *after]]
        assert numbers == list(range(len(numbers))) and words([*before, *after]) == "I look.\n"
        _, call = (await client.responses.retrieve(id)).output
        assert (call.name, call.status, call.arguments) == ("f", "completed", '{"a":"' + "x" * 200 + '"}')
        asked = worker.generations[-1].body
        assert asked["kv_transfer_params"] and asked["tool_choice"] == "required"


@pytest.mark.parametrize(("killed_in", "summaries"), [("summary", 2), ("answer", 1)])
async def test_a_context_that_was_made_short_when_its_gateway_was_killed_is_seen_made_short_once(
    gateway, worker, killed_in, summaries
):
    short: Any = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}
    worker.script(answer=" word" * 60, pace_ms=10)
    async with await gateway.client("ada") as client:
        await gateway.until_ready()
        long_ago: Any = [{"role": "user", "content": " long" * 1200}, {"role": "assistant", "content": "Ago."}]
        conversation = await client.conversations.create(items=long_ago)
        begun = await client.responses.create(input="x", background=True, conversation=conversation.id, **short)
        asked = 1 + (killed_in == "answer")
        await worker.until(lambda w: len(w.generations) == asked and w.generations[-1].tokens_sent > 10)
        before = [event async for event in seen(client, begun.id, until=4)]
        gateway.stop(signal.SIGKILL)
        gateway.start()
        after = [event async for event in seen(client, begun.id, starting_after=before[-1].sequence_number)]
        numbers = [event.sequence_number for event in [*before, *after]]
        assert numbers == list(range(len(numbers))) and words([*before, *after]) == " word" * 60
        added = [event.item.type for event in [*before, *after] if event.type == "response.output_item.added"]
        assert added == [item.type for item in after[-1].response.output] == ["compaction", "message"]
        read = [record.body["messages"][-1]["content"] for record in worker.generations if "messages" in record.body]
        assert read.count(REQUEST) == summaries


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
