"""A context that is made short within a turn: the official client, a gateway, Redis, a scripted worker."""

import json
from typing import Any

import httpx2
import openai
import pytest

from gateway.compaction import REQUEST
from gateway.prompt import SUMMARY_NOTE
from tests.fake_worker import FakeWorker
from tests.flow.test_compaction import back, user
from tests.flow.test_tools import WEATHER
from tests.flow.test_turns import events_of, raw_stream

LONG = "word " * 1200  # of somebody who has much to say; a token each
RULE: Any = {"role": "developer", "content": "Answer in rhymes."}
SHORT: Any = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}


def asked_of(worker: FakeWorker) -> list[tuple[str, str]]:
    """What the engine was given to read last, without the system prompt."""
    return [(message["role"], message["content"]) for message in worker.generations[-1].body["messages"][1:]]


def told(summary: str) -> tuple[str, str]:
    return ("system", SUMMARY_NOTE + summary)


async def long_ago(client: openai.AsyncOpenAI, **asked: Any) -> Any:
    return await client.responses.create(input=[RULE, user("One"), user(LONG)], **asked)


async def test_above_the_threshold_a_summary_stands_for_what_came_before_and_is_an_item_of_the_answer(
    client, scripted, ready, person
):
    first = await long_ago(client)
    scripted.script(answer="They spoke of words.")
    events = await events_of(
        await client.responses.create(input="Two", previous_response_id=first.id, stream=True, **SHORT)
    )
    summary, answer = scripted.generations[-2:]
    assert [m["content"] for m in summary.body["messages"][1:]] == [
        RULE["content"], "One", LONG, first.output_text, REQUEST,
    ]  # fmt: skip
    assert (summary.body["temperature"], summary.body["max_tokens"]) == (0, 500)
    assert asked_of(scripted) == [
        ("system", RULE["content"]), told("They spoke of words."), ("user", "One"), ("user", "Two"),
    ]  # fmt: skip
    kinds = [event["type"] for event in events if event["type"] != "deskmate:queue.updated"]
    assert kinds[:6] == [
        "response.created", "response.in_progress", "deskmate:progress", "response.output_item.added",
        "response.output_item.done", "response.output_item.added",
    ]  # fmt: skip
    response = events[-1]["response"]
    compaction, message = response["output"]
    assert compaction["type"] == "compaction" and compaction["id"].startswith("cmp_") and message["role"] == "assistant"
    assert "words" not in compaction["encrypted_content"]
    read, wrote = len(summary.prompt_ids) + len(answer.prompt_ids), summary.tokens_sent + answer.tokens_sent
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (read, wrote)
    assert (await client.responses.retrieve(response["id"])).model_dump() == response

    scripted.script(answer=None)
    await client.responses.create(input="Three", previous_response_id=response["id"])
    assert asked_of(scripted)[1:] == [
        told("They spoke of words."), ("user", "One"), ("user", "Two"), ("assistant", message["content"][0]["text"]),
        ("user", "Three"),
    ]  # fmt: skip
    path = f"/v1/responses/{response['id']}?stream=true"
    replayed = await raw_stream(ready, await ready.key(person), "GET", path)
    shown = [json.loads(line[6:]) for line in replayed.decode().splitlines() if line.startswith("data: {")]
    assert [(event["type"], event["sequence_number"]) for event in shown] == [
        (event["type"], event["sequence_number"]) for event in events
    ]
    sealed = {
        event["item"]["encrypted_content"] for event in shown if event.get("item", {}).get("type") == "compaction"
    }
    assert sealed == {compaction["encrypted_content"]}


async def test_below_the_threshold_or_with_nothing_but_the_question_the_context_stays_as_it_is(client, scripted):
    first = await client.responses.create(input="One")
    second = await client.responses.create(input="Two", previous_response_id=first.id, **SHORT)
    third = await client.responses.create(input=LONG, **SHORT)
    assert [item.type for response in (second, third) for item in response.output] == ["message", "message"]
    assert len(scripted.generations) == 3


async def test_in_a_conversation_the_next_turn_and_the_next_compaction_read_the_compaction(client, scripted):
    conversation = await client.conversations.create()
    await long_ago(client, conversation=conversation.id)
    scripted.script(answer="First.")
    await client.responses.create(input="Two", conversation=conversation.id, **SHORT)
    items = [item.type async for item in client.conversations.items.list(conversation.id, order="asc")]
    assert items == ["message"] * 5 + ["compaction", "message"]
    scripted.script(answer="Second.")
    await client.responses.create(input=LONG, conversation=conversation.id, **SHORT)
    short = await client.responses.create(input="Four", conversation=conversation.id, **SHORT)
    assert short.output[0].type == "compaction"
    kept = [("user", "One"), ("user", "Two"), ("user", "Four")]
    assert asked_of(scripted) == [("system", RULE["content"]), told("Second."), *kept]
    compacted = await client.responses.compact(model="fake", previous_response_id=short.id)
    *people, _ = back(compacted)
    assert [message["content"][0]["text"] for message in people] == ["One", "Two", "Four"]


async def test_who_keeps_the_context_may_drop_what_came_before_the_compaction(client, scripted):
    context: list[Any] = [RULE, user("One"), {"role": "assistant", "content": LONG}, user("Two")]
    scripted.script(answer="They spoke.")
    response = await client.responses.create(input=context, store=False, **SHORT)
    answered: list[Any] = [item.to_dict() for item in response.output]
    read = []
    for before in (context, []):
        await client.responses.create(input=[*before, *answered, user("Three")], store=False)
        read.append(asked_of(scripted))
    assert read[0] == read[1] and len(read[0]) == 6 and read[0][1] == told("They spoke.")


async def test_calls_that_wait_for_their_answer_are_kept_with_their_outputs(client, scripted):
    scripted.script(tools=[{"name": "weather", "arguments": {"city": "Bonn"}}], answer="I look.")
    asked: Any = [user("Weather?"), {"role": "assistant", "content": LONG}, user("So?")]
    first = await client.responses.create(input=asked, tools=[WEATHER])
    call = first.output[-1]
    scripted.script(tools=None, answer="Rain.")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    second = await client.responses.create(
        input=[output], previous_response_id=first.id, tools=[WEATHER], tool_choice="auto", **SHORT
    )
    assert [item.type for item in second.output] == ["compaction", "message"] and second.output_text == "Rain."
    messages = scripted.generations[-1].body["messages"][1:]
    assert [message["role"] for message in messages] == ["system", "user", "user", "assistant", "tool"]
    assert messages[3]["tool_calls"][0]["id"] == messages[4]["tool_call_id"] == call.call_id


async def test_a_summary_that_an_engine_breaks_off_goes_on_unseen(client, scripted):
    first = await long_ago(client)
    scripted.script(answer="They spoke of words and more.", fail="close_after:3", times=1, pace_ms=2)
    events = await events_of(
        await client.responses.create(input="Two", previous_response_id=first.id, stream=True, **SHORT)
    )
    states = [event["state"] for event in events if event["type"] == "deskmate:progress"]
    assert states == ["compacting", "engine_lost", "resuming"]
    assert told("They spoke of words and more.") in asked_of(scripted)
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["compaction", "message"]


async def test_without_a_summary_the_whole_context_is_answered(client, scripted):
    first = await long_ago(client)
    scripted.script(answer=" ")
    second = await client.responses.create(input="Two", previous_response_id=first.id, **SHORT)
    assert [item.type for item in second.output] == ["message"] and ("user", LONG) in asked_of(scripted)


async def test_a_summary_may_be_cancelled_and_its_tokens_count(client, scripted):
    first = await long_ago(client)
    scripted.script(answer=" word" * 400, pace_ms=20)
    begun = await client.responses.create(input="Two", previous_response_id=first.id, background=True, **SHORT)
    await scripted.until(lambda worker: worker.generations[-1].tokens_sent > 2 and len(worker.generations) == 2)
    ended = await client.responses.cancel(begun.id)
    assert (ended.status, ended.output) == ("cancelled", []) and ended.usage.output_tokens > 0
    scripted.script(answer=None, pace_ms=0)
    await client.responses.create(input="Three", previous_response_id=begun.id)
    assert asked_of(scripted)[-2:] == [("user", "Two"), ("user", "Three")]


async def test_on_a_websocket_a_chain_that_is_not_stored_reads_the_compaction(client, scripted):
    async with client.responses.connect() as connection:
        previous: Any = {}
        for text, more in ((LONG, {}), ("Two", SHORT), ("Three", {})):
            scripted.script(answer=f"On {text[:5]}.")
            await connection.response.create(input=text, store=False, **previous, **more)
            async for event in connection:
                assert event.type not in ("error", "response.failed"), event
                if event.type == "response.completed":
                    previous = {"previous_response_id": event.response.id}
                    break
    assert asked_of(scripted) == [told("On Two."), ("user", "Two"), ("assistant", "On Two."), ("user", "Three")]


async def test_a_threshold_that_a_model_never_reaches_is_one_that_it_does(client, scripted):
    """Clients are made for contexts of hundreds of thousands of tokens."""
    wide: Any = {"context_management": [{"type": "compaction", "compact_threshold": 200_000}]}
    first = await client.responses.create(input="word " * 6400)
    second = await client.responses.create(input="Two", previous_response_id=first.id, **wide)
    third = await client.responses.create(
        input="Three", previous_response_id=first.id, context_management=[{"type": "compaction"}]
    )
    assert [response.output[0].type for response in (second, third)] == ["compaction", "compaction"]


@pytest.mark.parametrize(
    ("management", "code", "param"),
    [
        (
            [{"type": "compaction", "compact_threshold": 999}],
            "invalid_value",
            "context_management[0].compact_threshold",
        ),
        (
            [{"type": "compaction", "compact_threshold": True}],
            "invalid_value",
            "context_management[0].compact_threshold",
        ),
        ([{"type": "compaction", "wibble": 1}], "unknown_parameter", "context_management[0].wibble"),
        ([{"type": "compaction"}] * 2, "invalid_value", "context_management[1]"),
        ([{"type": "prune"}], "unsupported_parameter", "context_management[0].type"),
        ([{"type": "deskmate:window"}], "invalid_value", "context_management[0].rounds"),
    ],
)
async def test_what_cannot_be_done_to_a_context_is_refused_by_name(ready, person, management, code, param):
    headers = {"authorization": f"Bearer {await ready.key(person)}"}
    async with httpx2.AsyncClient(base_url=ready.url, headers=headers) as http:
        answer = await http.post("/v1/responses", json={"input": "x", "context_management": management})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, code, param)
