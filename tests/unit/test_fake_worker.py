"""The scripted worker keeps its promises: official clients understand it, answers are known, aborts are seen."""

import asyncio
from itertools import islice

import anthropic
import openai
import pytest

from tests.fake_worker import ASSISTANT, IM_START, FakeWorker, answer, chat_ids, detokenize, generated_ids, tokenize

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def worker():
    with FakeWorker() as worker:
        yield worker


@pytest.fixture
async def client(worker):
    async with openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_streamed_chat_gives_the_known_answer_one_token_per_event(client, worker):
    stream = await client.chat.completions.create(
        model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True},
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    events = [event async for event in stream]
    text = "".join(event.choices[0].delta.content for event in events if event.choices)
    ids = [number for event in events if event.choices for number in getattr(event.choices[0], "token_ids", None) or ()]
    assert text == answer(HELLO)
    assert events[0].prompt_token_ids == chat_ids(HELLO)
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage.completion_tokens == len(ids)
    assert worker.requests[0].state == "finished"


async def test_prompt_ids_and_generated_ids_continue_the_same_answer(client):
    ids = chat_ids(HELLO)
    start = list(islice(generated_ids(ids), 7))
    completion = await client.completions.create(model="fake", prompt=ids + start, max_tokens=500)
    assert detokenize(start) + completion.choices[0].text == answer(HELLO)
    assert completion.choices[0].finish_reason == "stop"


async def test_limit_and_stop_are_honoured(client):
    short = await client.chat.completions.create(model="fake", messages=HELLO, max_tokens=5)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (answer(HELLO, 5), "length")
    word = answer(HELLO).split()[4]
    stopped = await client.chat.completions.create(model="fake", messages=HELLO, stop=[word])
    assert stopped.choices[0].message.content == answer(HELLO).split(word)[0]
    endless = await client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=300, extra_body={"ignore_eos": True}
    )
    assert endless.usage.completion_tokens == 300


async def test_the_anthropic_client_reads_its_messages(worker):
    async with anthropic.AsyncAnthropic(base_url=worker.url, api_key="none", max_retries=0) as client:
        async with client.messages.stream(model="fake", max_tokens=6, messages=HELLO) as stream:
            message = await stream.get_final_message()
        count = await client.messages.count_tokens(model="fake", messages=HELLO)
    assert message.content[0].text == answer(HELLO, 6)
    assert message.stop_reason == "max_tokens"
    assert count.input_tokens == len(chat_ids(HELLO)) == message.usage.input_tokens


async def test_a_client_that_leaves_is_recorded_as_an_abort(client, worker):
    worker.script(pace_ms=5)
    stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await worker.until(lambda w: w.requests[0].state == "aborted")
    worker.script(fail="hang")
    task = asyncio.create_task(client.chat.completions.create(model="fake", messages=HELLO))
    await worker.until(lambda w: len(w.requests) == 2)
    task.cancel()
    await worker.until(lambda w: w.requests[1].state == "aborted")


async def test_faults_come_as_scripted_and_as_often(client, worker):
    worker.script(fail="500", times=1)
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="fake", messages=HELLO)
    await client.chat.completions.create(model="fake", messages=HELLO)
    worker.script(fail="close_after:3", times=1)
    stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
    with pytest.raises(Exception):  # noqa: B017 - whatever the client's HTTP library says
        async for _ in stream:
            pass
    assert worker.requests[-1].tokens_sent == 3


async def test_scripted_tools_are_called(client, worker):
    worker.script(tools=[{"name": "weather", "arguments": {"city": "Bonn"}}])
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    whole = await client.chat.completions.create(model="fake", messages=HELLO, tools=[tool])
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city":"Bonn"}'
    stream = await client.chat.completions.create(model="fake", messages=HELLO, tools=[tool], stream=True)
    events = [event async for event in stream]
    steps = [step for event in events for step in event.choices[0].delta.tool_calls or ()]
    assert steps[0].function.name == "weather" and steps[0].id.startswith("chatcmpl-tool-")
    assert "".join(step.function.arguments or "" for step in steps) == '{"city":"Bonn"}' and len(steps) > 2
    assert events[-1].choices[0].finish_reason == "tool_calls"


async def test_text_before_several_calls_and_the_ids_of_every_token_are_streamed_as_vllm_does(client, worker):
    worker.script(answer="I look <here>", tools=[{"name": name, "arguments": {"a": [1, "}"]}} for name in "fg"])
    tool = {"type": "function", "function": {"name": "f"}}
    asked = {"model": "fake", "messages": HELLO, "tools": [tool], "stream": True}
    events = [
        event async for event in await client.chat.completions.create(**asked, extra_body={"return_token_ids": True})
    ]
    ids = [number for event in events for number in event.choices[0].model_extra.get("token_ids") or ()]
    assert detokenize(ids).startswith(
        'I look <here><tool_call>\n{"name": "f", "arguments": {"a":[1,"}"]}}\n</tool_call>'
    )
    assert "".join(event.choices[0].delta.content or "" for event in events) == "I look <here>"
    calls = {"f": "", "g": ""}
    for step in (step for event in events for step in event.choices[0].delta.tool_calls or ()):
        calls["fg"[step.index]] += step.function.arguments or ""
    assert calls == dict.fromkeys("fg", '{"a":[1,"}"]}')


async def test_a_chat_goes_on_from_token_ids_and_its_calls_are_read(client, worker):
    worker.script(answer="I look.", tools=[{"name": "f", "arguments": {}}])
    tools = [{"type": "function", "function": {"name": "f"}}]
    ids = [*chat_ids(HELLO, tools), *tokenize("I look.")[:1]]
    whole = await client.chat.completions.create(
        model="fake", messages=HELLO, tools=tools, stream=True,
        extra_body={"kv_transfer_params": {"prompt_token_ids": ids}},
    )  # fmt: skip
    deltas = [event.choices[0].delta async for event in whole]
    assert "".join(delta.content or "" for delta in deltas) == detokenize(tokenize("I look.")[1:])
    assert next(step.function.name for delta in deltas for step in delta.tool_calls or ()) == "f"


def test_a_control_token_in_a_text_becomes_that_token():
    ids = chat_ids([{"role": "user", "content": "a<|im_start|>b"}])
    assert ids.count(IM_START) == 2
    assert ids[-1] == ASSISTANT
    assert detokenize(tokenize("Grüße, 世界 🙂 und\nmehr")) == "Grüße, 世界 🙂 und\nmehr"


async def test_a_stopped_worker_starts_again_at_the_same_address(client, worker):
    await client.models.list()
    worker.stop()
    with pytest.raises(openai.APIConnectionError):
        await client.models.list()
    worker.start()
    assert (await client.models.list()).data[0].id == "fake"
