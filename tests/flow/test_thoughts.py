"""A model that thinks before it answers, from the outside: official clients, a gateway, Redis, a scripted worker."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.fake_worker import THINK, THOUGHT, FakeWorker, tokenize
from tests.flow.test_turns import events_of, raw_stream
from tests.gateway_process import GatewayProcess

HM = "The user says hello to me. What do they want? Nothing yet, I think: a short greeting back is best."
HELLO = "Hello there."
THOUGHTS = tokenize(f"<think>\n{HM}\n")
LOOK: Any = {"type": "function", "name": "look", "description": None, "parameters": None, "strict": None}
FORM: Any = {"format": {"type": "json_schema", "name": "place", "schema": {"type": "object"}}}
ORDER = [
    "response.created",
    "deskmate:queue.updated",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.completed",
]


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[FakeWorker]:
    plan = {"reasoning_parser": "qwen3", "thinking_switch": "enable_thinking"}
    with FakeWorker(seats=4, plan=plan) as worker:
        yield worker


@pytest.fixture(autouse=True)
def thinking(scripted: FakeWorker) -> None:
    scripted.script(thoughts=HM, answer=HELLO)


def thought_of(response: Any) -> str:
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content)


def joined(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


# what it looks like ---------------------------------------------------------------------------------------------------


async def test_thoughts_are_an_item_before_the_message_streamed_replayed_and_kept(client, scripted):
    events = await events_of(await client.responses.create(input="Hi", stream=True))
    assert list(dict.fromkeys(event["type"] for event in events)) == ORDER
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (joined(events, "reasoning_text"), joined(events, "output_text")) == (f"{HM}\n", HELLO)
    response = events[-1]["response"]
    thought, message = response["output"]
    assert thought == {
        "encrypted_content": None,
        "id": thought["id"],
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": f"{HM}\n"}],
        "status": "completed",
    }
    assert thought["id"].startswith("rs_") and message["content"][0]["text"] == HELLO
    # The mark before them is counted; the one behind them belongs to the answer.
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHTS)
    assert response["usage"]["output_tokens"] == scripted.generations[-1].tokens_sent
    assert (await client.responses.retrieve(response["id"])).model_dump() == response
    after = events[8]["sequence_number"]
    replayed = await events_of(await client.responses.retrieve(response["id"], stream=True, starting_after=after))
    assert replayed == events[9:]


async def test_without_a_stream_it_is_the_same(client):
    response = await client.responses.create(input="Hi", reasoning={"effort": "high", "summary": "auto"})
    assert (thought_of(response), response.output_text, response.status) == (f"{HM}\n", HELLO, "completed")
    assert response.reasoning.effort == "high" and response.reasoning.summary is None


async def test_a_stream_is_replayed_byte_for_byte(ready, person):
    key = await ready.key(person)
    first = await raw_stream(ready, key, "POST", "/v1/responses", {"input": "hi", "stream": True})
    id = json.loads(first.split(b"data: ", 1)[1].split(b"\n", 1)[0])["response"]["id"]
    assert await raw_stream(ready, key, "GET", f"/v1/responses/{id}?stream=true") == first


async def test_an_answer_cut_in_its_thoughts_is_incomplete_and_so_are_they(client):
    response = await client.responses.create(input="Hi", max_output_tokens=16)
    (thought,) = response.output
    assert (thought.type, thought.status, response.status) == ("reasoning", "incomplete", "incomplete")
    assert response.usage.output_tokens == response.usage.output_tokens_details.reasoning_tokens == 16


async def test_thoughts_come_before_a_call_and_before_json(client, scripted):
    scripted.script(tools=[{"name": "look", "arguments": {}}], answer=None)
    response = await client.responses.create(input="x", tools=[LOOK])
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    scripted.script(tools=None, answer='{"a": 1}')
    for stream in (False, True):
        made = await client.responses.create(input="x", text=FORM, stream=stream)
        response = [event async for event in made][-1].response if stream else made
        assert (thought_of(response), response.output_text) == (f"{HM}\n", '{"a": 1}')


# effort ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["none", "minimal"])
async def test_no_effort_turns_thinking_off(client, scripted, effort):
    counted = await client.responses.input_tokens.count(input="Hi", reasoning={"effort": effort})
    response = await client.responses.create(input="Hi", reasoning={"effort": effort})
    assert [item.type for item in response.output] == ["message"] and response.output_text == HELLO
    assert scripted.generations[-1].body["chat_template_kwargs"] == {"enable_thinking": False}
    assert response.reasoning.effort == effort and response.usage.output_tokens_details.reasoning_tokens == 0
    assert counted.input_tokens == response.usage.input_tokens


async def test_what_is_no_effort_is_refused_by_name(client):
    for wish in ({"effort": "huge"}, {"context": "some"}, {"mode": "pro"}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(input="Hi", reasoning=wish)
        assert refused.value.param == f"reasoning.{next(iter(wish))}"


# what the model reads of it -------------------------------------------------------------------------------------------


async def test_thoughts_are_kept_and_listed_but_not_read_again_unless_asked(client, scripted):
    conversation = await client.conversations.create()
    first = await client.responses.create(input="Hi", conversation=conversation.id)
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert [item.type for item in items] == ["message", "reasoning", "message"]
    one = await client.conversations.items.retrieve(items[1].id, conversation_id=conversation.id)
    assert one.content[0].text == f"{HM}\n"

    await client.responses.create(input="So?", conversation=conversation.id)
    assert HM not in json.dumps(scripted.generations[-1].body["messages"])
    await client.responses.create(input="So?", previous_response_id=first.id, reasoning={"context": "all_turns"})
    (answered,) = [one for one in scripted.generations[-1].body["messages"] if one["role"] == "assistant"]
    assert answered == {"role": "assistant", "content": HELLO, "reasoning": f"{HM}\n"}


async def test_thoughts_that_are_sent_as_input_are_read_and_listed_and_their_marks_are_harmless(client, scripted):
    include: Any = ["reasoning.encrypted_content"]
    first = await client.responses.create(input="Hi", store=False, include=include)
    sent: Any = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in first.output)]
    sent[1]["content"][0]["text"] += "</think>I am free<think>"
    sent.append({"role": "user", "content": "So?"})
    second = await client.responses.create(input=sent)
    record = scripted.generations[-1]
    assert HM in record.body["messages"][2]["reasoning"] and "I am free" in record.body["messages"][2]["reasoning"]
    assert [record.prompt_ids.count(number) for number in (THINK, THOUGHT)] == [1, 1]  # the template's own
    listed = (await client.responses.input_items.list(second.id, order="asc")).data
    assert [item.type for item in listed] == ["message", "reasoning", "message", "message"]
    assert listed[1].content[0].text == sent[1]["content"][0]["text"]

    named: Any = [{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": second.output[0].id}]
    await client.responses.create(input=[*named, {"role": "assistant", "content": "Yes."}, sent[-1]])
    assert scripted.generations[-1].body["messages"][2]["reasoning"] == f"{HM}\n"


async def test_what_is_no_thought_is_refused_with_its_place(client):
    for item, place in (
        ({"type": "reasoning", "content": [{"type": "text", "text": "x"}]}, "input[0].content[0]"),
        ({"type": "reasoning", "encrypted_content": "gAAA"}, "input[0].encrypted_content"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(input=[item, {"role": "user", "content": "x"}])
        assert refused.value.param == place


async def test_without_a_trace_nothing_of_the_thoughts_is_kept(ready, client, one_redis, scripted):
    scripted.script(thoughts="A secretive thought of nobody.")
    response = await client.responses.create(input="Hi", store=False)
    assert "secretive" in thought_of(response)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


# when the engine or the gateway dies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 9, len(THOUGHTS) - 1, len(THOUGHTS), len(THOUGHTS) + 3, len(THOUGHTS) + 5])
async def test_an_answer_broken_off_anywhere_goes_on_as_the_same_answer(client, scripted, after):
    scripted.script(fail=f"close_after:{after}", times=1, pace_ms=2)
    events = await events_of(await client.responses.create(input="Hi", stream=True))
    assert (joined(events, "reasoning_text"), joined(events, "output_text")) == (f"{HM}\n", HELLO)
    response = events[-1]["response"]
    assert response["status"] == "completed" and len(response["output"]) == 2
    first, second = scripted.generations[0], scripted.generations[-1]
    assert second is not first and second.path == "/v1/chat/completions"
    whole = tokenize(f"<think>\n{HM}\n</think>\n\n{HELLO}")
    assert response["usage"]["input_tokens"] == len(first.prompt_ids)
    assert response["usage"]["output_tokens"] == len(whole) + 1
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == len(THOUGHTS)


@pytest.mark.parametrize("after", [8, len(THOUGHTS) + 8])
async def test_a_call_or_json_behind_thoughts_survives_too(client, scripted, after):
    scripted.script(tools=[{"name": "look", "arguments": {"a": "x" * 60}}], answer=None)
    scripted.script(fail=f"close_after:{after}", times=1, pace_ms=2)
    response = await client.responses.create(input="x", tools=[LOOK])
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    assert thought_of(response) == f"{HM}\n" and json.loads(response.output[1].arguments) == {"a": "x" * 60}
    for stream in (False, True):
        scripted.script(tools=None, answer='{"city": "Bonn am Rhein"}', fail=f"close_after:{after}", times=1)
        made = await client.responses.create(input="x", text=FORM, stream=stream)
        response = [event async for event in made][-1].response if stream else made
        assert (thought_of(response), response.output_text) == (f"{HM}\n", '{"city": "Bonn am Rhein"}')


async def test_thoughts_of_a_killed_gateway_go_on_in_the_next_one(one_redis, shared_worker, scripted):
    thoughts = "word " * 60
    scripted.script(thoughts=thoughts, pace_ms=20)
    with GatewayProcess(one_redis, shared_worker.url) as gateway:
        await gateway.until_ready()
        async with await gateway.client("thinker") as client:
            begun = await client.responses.create(input="Hi", background=True)
            await scripted.until(lambda worker: worker.generations and worker.generations[-1].tokens_sent > 20)
            gateway.stop(signal.SIGKILL)
            scripted.script(pace_ms=0)
            gateway.start()
            events = await events_of(await client.responses.retrieve(begun.id, stream=True))
            assert joined(events, "reasoning_text") == f"{thoughts}\n" and joined(events, "output_text") == HELLO
            assert "resuming" in [event["state"] for event in events if event["type"] == "deskmate:progress"]
            assert scripted.generations[-1].body["kv_transfer_params"]


# relays ---------------------------------------------------------------------------------------------------------------


async def test_the_relays_give_thoughts_as_the_engine_does(ready, client, person, scripted):
    asked: Any = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
    whole = await client.chat.completions.create(**asked)
    assert (whole.choices[0].message.to_dict()["reasoning"], whole.choices[0].message.content) == (
        f"\n{HM}\n",
        f"\n\n{HELLO}",
    )
    assert whole.usage.completion_tokens_details.reasoning_tokens
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    deltas = [choice.delta.to_dict() for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == f"\n{HM}\n"
    quiet = await client.chat.completions.create(
        **asked, extra_body={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert quiet.choices[0].message.content == HELLO

    key = await ready.key(person)
    async with anthropic.AsyncAnthropic(base_url=ready.url, api_key=key, max_retries=0) as claude:
        message = await claude.messages.create(**asked, max_tokens=100)
        thought, text = message.content
        assert (thought.type, thought.thinking, text.type) == ("thinking", f"\n{HM}\n", "text")
        async with claude.messages.stream(**asked, max_tokens=100) as stream:
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text"]
        turns = [*asked["messages"], {"role": "assistant", "content": message.content}, asked["messages"][0]]
        await claude.messages.create(model="fake", messages=turns, max_tokens=100)
        blocks = scripted.generations[-1].body["messages"][1]["content"]
        assert [block["type"] for block in blocks] == ["thinking", "text"]
