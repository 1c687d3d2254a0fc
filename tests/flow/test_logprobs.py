"""Log probabilities from the outside: in the events, in what is kept, across deaths, and through the relays."""

from typing import Any

import openai
import pytest

from tests.fake_worker import likely, tokenize
from tests.flow.test_tools import FORM, WEATHER
from tests.flow.test_turns import events_of, raw_stream

TEXT = "They spoke 🙂 of words."
WISHED: Any = {"include": ["message.output_text.logprobs"]}


def shown(text: str, top: int) -> list[dict[str, Any]]:
    """What the engine says of the tokens of this text, in OpenAI's shape."""
    return [{**one, "top_logprobs": others} for one, *others in (_entries(number, top) for number in tokenize(text))]


def _entries(number: int, top: int) -> list[dict[str, Any]]:
    return [
        {"token": token, "bytes": list(token.encode()), "logprob": logprob} for token, logprob in likely(number, top)
    ]


def of_deltas(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for event in events if event["type"] == "response.output_text.delta" for one in event["logprobs"]]


@pytest.mark.parametrize("wish", [{**WISHED, "top_logprobs": 2}, {"top_logprobs": 2}, WISHED])
async def test_every_token_has_its_own_in_the_deltas_at_the_end_and_in_what_is_kept(client, scripted, wish):
    scripted.script(answer=TEXT)
    top = wish.get("top_logprobs", 0)
    events = await events_of(await client.responses.create(input="x", stream=True, **wish))
    expected = shown(TEXT, top)
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert of_deltas(events) == done["logprobs"] == expected
    response = events[-1]["response"]
    (part,) = response["output"][0]["content"]
    assert part["logprobs"] == expected and response["top_logprobs"] == top
    kept = await client.responses.retrieve(response["id"])
    assert kept.output[0].content[0].to_dict()["logprobs"] == expected
    assert scripted.generations[-1].body["top_logprobs"] == top


async def test_nobody_who_did_not_ask_gets_or_pays_for_them(client, scripted):
    events = await events_of(await client.responses.create(input="x", stream=True, top_logprobs=0))
    assert of_deltas(events) == [] == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert "logprobs" not in scripted.generations[-1].body


@pytest.mark.parametrize("after", [1, 3, 4])
async def test_across_the_death_of_an_engine_there_is_neither_gap_nor_repeat_and_a_replay_is_the_same(
    client, ready, scripted, person, after
):
    scripted.script(answer=TEXT, fail=f"close_after:{after}", times=1, pace_ms=2)
    body = {"input": "x", "stream": True, "top_logprobs": 1}
    key = await ready.key(person)
    first = await raw_stream(ready, key, "POST", "/v1/responses", body)
    id = first.partition(b'"id":"')[2].partition(b'"')[0].decode()
    assert b'"state":"resuming"' in first
    kept = (await client.responses.retrieve(id)).output[0]
    assert (kept.content[0].text, kept.content[0].to_dict()["logprobs"]) == (TEXT, shown(TEXT, 1))
    events = await events_of(await client.responses.retrieve(id, stream=True))
    assert of_deltas(events) == shown(TEXT, 1)
    assert await raw_stream(ready, key, "GET", f"/v1/responses/{id}?stream=true") == first


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_of_a_given_form_has_them_too(client, scripted, stream):
    scripted.script(answer='{"city": "Bonn"}')
    wish: Any = {"input": "x", "text": FORM, "top_logprobs": 1}
    if stream:
        *_, last = await events_of(await client.responses.create(**wish, stream=True))
        (message,) = last["response"]["output"]
    else:
        (message,) = (await client.responses.create(**wish)).to_dict()["output"]
    assert message["content"][0]["logprobs"] == shown('{"city": "Bonn"}', 1)


async def test_text_before_a_call_has_them_and_the_call_has_none(client, scripted):
    scripted.script(answer="I look.\n", tools=[{"name": "weather", "arguments": {"city": "Bonn"}}])
    response = await client.responses.create(input="x", tools=[WEATHER], **WISHED)
    message, call = response.to_dict()["output"]
    assert message["content"][0]["logprobs"] == shown("I look.\n", 0) and "logprobs" not in call


async def test_the_items_of_a_conversation_carry_them_and_the_model_does_not_read_them(client, scripted):
    scripted.script(answer=TEXT)
    conversation = await client.conversations.create()
    first = await client.responses.create(input="x", conversation=conversation.id, **WISHED)
    items: Any = await client.conversations.items.list(conversation.id)
    assert items.data[0].content[0].to_dict()["logprobs"] == shown(TEXT, 0)
    sent_back: Any = [first.output[0].to_dict(), {"role": "user", "content": "y"}]
    for more in ({"conversation": conversation.id, "input": "y"}, {"input": sent_back, "store": False}):
        await client.responses.create(**more)
        assert {"role": "assistant", "content": TEXT} in scripted.generations[-1].body["messages"]


async def test_more_than_twenty_are_refused(client, scripted):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(input="x", top_logprobs=21)
    assert refused.value.param == "top_logprobs"


async def test_through_the_relays_they_pass_as_the_engine_says_them(client, scripted):
    scripted.script(answer=TEXT)
    chat: Any = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**chat)
    streamed = [chunk async for chunk in await client.chat.completions.create(**chat, stream=True)]
    joined = [
        one.to_dict()
        for chunk in streamed
        for choice in chunk.choices
        if choice.logprobs
        for one in choice.logprobs.content
    ]
    assert [one.to_dict() for one in whole.choices[0].logprobs.content] == joined
    assert joined[:-1] == shown(TEXT, 2)  # the last is the end of the turn
    text = await client.completions.create(model="fake", prompt="x", logprobs=2, max_tokens=3)
    assert len(text.choices[0].logprobs.token_logprobs) == len(text.choices[0].logprobs.tokens) == 3
    assert "".join(text.choices[0].logprobs.tokens) == text.choices[0].text
