"""Schemas and tools that the engine cannot hold an answer to: said by name, on every route, before anything is kept."""

from typing import Any

import openai
import pytest

from tests.flow.test_tools import FORM, WEATHER
from tests.flow.test_turns import events_of

WRONG = 'Grammar error: Unimplemented keys: ["contains"]'  # vLLM's words
CHAT: Any = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
FORMATTED: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": {"type": "array", "contains": {}}}}
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

RESPONSES = [
    ({"text": FORM}, "text.format.schema", "invalid_json_schema"),
    ({"tools": [WEATHER]}, "tools", "invalid_function_parameters"),
]
RELAYED = [
    ({"response_format": FORMATTED}, "response_format"),
    ({"tools": [FUNCTION], "tool_choice": "required"}, "tools"),
]


@pytest.mark.parametrize(("asked", "param", "code"), RESPONSES)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_engine_cannot_hold_is_refused_before_anything_is_stored(
    client, scripted, asked, param, code, stream
):
    conversation = await client.conversations.create()
    scripted.script(refuses=WRONG)
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as refused:
            await client.responses.create(input="x", conversation=conversation.id, stream=stream, **asked)
        assert (refused.value.param, refused.value.code) == (param, code)
    assert [item async for item in client.conversations.items.list(conversation.id)] == []
    assert not scripted.generations
    assert len([record for record in scripted.requests if record.path == "/deskmate/check"]) <= 1  # it is remembered


@pytest.mark.parametrize(("asked", "param", "code"), RESPONSES)
async def test_a_bare_engine_says_it_when_it_is_asked_and_is_not_asked_again(client, scripted, asked, param, code):
    scripted.script(refuses=WRONG, checks=False)
    asked = {**asked, "metadata": {"bare": param}}
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as refused:
        await client.responses.create(input="bare", **_other(asked))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert len(scripted.generations) == 1
    *_, last = await events_of(await client.responses.create(input="bare", stream=True, **_other(asked)))
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "invalid_prompt"
    assert "Unimplemented keys" in last["response"]["error"]["message"]
    assert (await client.responses.retrieve(last["response"]["id"])).status == "failed"
    assert len(scripted.generations) == 2


def _other(asked: Any) -> Any:
    """Not what another test has had checked already."""
    if "text" in asked:
        return {**asked, "text": {"format": {**asked["text"]["format"], "name": "elsewhere"}}}
    return {**asked, "tools": [{**WEATHER, "name": "elsewhere"}]}


async def test_over_a_websocket_it_is_one_error_and_the_connection_lives_on(client, scripted):
    scripted.script(refuses=WRONG)
    async with client.responses.connect() as connection:
        await connection.response.create(input="x", text=FORM)
        error = await anext(aiter(connection))
        assert (error.type, error.error.code, error.error.param) == (
            "error",
            "invalid_json_schema",
            "text.format.schema",
        )
        await connection.response.create(input="x")
        async for event in connection:
            if event.type == "response.completed":
                break


@pytest.mark.parametrize(("asked", "param"), RELAYED)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_relays_say_it_by_name_too(client, scripted, asked, param, stream):
    scripted.script(refuses=WRONG)
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as refused:
        await client.chat.completions.create(**CHAT, **asked, stream=stream)
    assert refused.value.param == param and not scripted.generations


@pytest.mark.parametrize("stream", [True, False])
async def test_before_a_bare_engine_a_relayed_stream_is_refused_as_http(client, scripted, stream):
    scripted.script(refuses=WRONG, checks=False)
    named = {**FORMATTED, "json_schema": {**FORMATTED["json_schema"], "name": f"bare{stream}"}}
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as refused:
        await client.chat.completions.create(**CHAT, response_format=named, stream=stream)
    assert refused.value.code == "invalid_prompt" and len(scripted.generations) == 1


async def test_a_form_that_can_be_held_is_looked_at_once_and_answered(client, scripted):
    form: Any = {"format": {**FORM["format"], "name": "good"}}
    scripted.script(answer='{"city": "Bonn"}')
    for _ in range(2):
        assert (await client.responses.create(input="x", text=form)).output_text == '{"city": "Bonn"}'
    assert len([record for record in scripted.requests if record.path == "/deskmate/check"]) == 1
