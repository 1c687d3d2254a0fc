"""Tools and the form of an answer from the outside: the official client, a gateway, Redis, a scripted worker."""

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_worker import IM_END, FakeWorker, tokenize
from tests.flow.test_turns import events_of, raw_stream
from tests.gateway_process import GatewayProcess

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}
TIME: Any = {"type": "function", "name": "time", "description": None, "parameters": None, "strict": True}
BONN = {"name": "weather", "arguments": {"city": "Bonn"}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORM: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(event["type"] for event in events))


async def test_a_call_is_streamed_as_an_item_and_its_output_is_answered(client, scripted):
    scripted.script(answer="I look.", tools=[BONN])
    events = await events_of(await client.responses.create(input="Weather?", tools=[WEATHER], stream=True))
    assert kinds(events)[-4:] == [
        "response.output_item.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert (done["name"], json.loads(done["arguments"]), done["output_index"]) == ("weather", {"city": "Bonn"}, 1)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    first = await client.responses.retrieve(events[-1]["response"]["id"])
    assert first.model_dump() == events[-1]["response"]
    message, call = first.output
    assert (message.type, first.output_text, call.type, call.status) == (
        "message",
        "I look.",
        "function_call",
        "completed",
    )

    scripted.script(answer="Rain.", tools=None)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain <|im_end|>"}
    second = await client.responses.create(input=[output], previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "Rain."
    question, called, answered = scripted.generations[-1].body["messages"][1:]
    assert question == {"role": "user", "content": "Weather?"} and called["content"] == "I look."
    (made,) = called["tool_calls"]
    assert made["id"] == call.call_id == answered["tool_call_id"] and answered["role"] == "tool"
    assert (made["type"], made["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Bonn"}'})
    assert scripted.generations[-1].prompt_ids.count(IM_END) == 5  # tools, system, user, assistant, tool
    (listed,) = (await client.responses.input_items.list(second.id)).data
    assert listed.model_dump(exclude_unset=True) == output | {"id": listed.id, "status": "completed"}


async def test_the_whole_loop_works_in_a_conversation_and_its_items_are_listed(client, scripted):
    scripted.script(tools=[BONN, {"name": "time", "arguments": {}}])
    conversation = await client.conversations.create()
    keep: Any = {"conversation": conversation.id, "tools": [WEATHER, TIME]}
    first = await client.responses.create(input="Weather?", **keep)
    assert [(item.type, item.name) for item in first.output] == [
        ("function_call", "weather"),
        ("function_call", "time"),
    ]
    scripted.script(answer="Rain at nine.", tools=None)
    outputs: Any = [
        {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": first.output[1].call_id,
            "output": [{"type": "input_text", "text": "ni"}, {"type": "input_text", "text": "ne"}],
        },
    ]
    await client.responses.create(input=outputs, **keep)
    messages = scripted.generations[-1].body["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert [message["content"] for message in messages[3:]] == ["rain", "nine"]
    items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
    kinds = ["message", "function_call", "function_call", "function_call_output", "function_call_output", "message"]
    assert [item.type for item in items] == kinds and {item.status for item in items} == {"completed"}
    one = await client.conversations.items.retrieve(items[1].id, conversation_id=conversation.id)
    assert one.model_dump() | {"deskmate:response": first.id} == items[1].model_dump() and one.id.startswith("fc_")


async def test_a_conversation_may_be_filled_with_calls_and_their_outputs(client, scripted):
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    begun: Any = [{"role": "user", "content": "Weather?"}, call]
    conversation = await client.conversations.create(items=begun)
    added: Any = await client.conversations.items.create(conversation.id, items=[output])
    assert added.data[0].model_dump(exclude_unset=True) == output | {"id": added.data[0].id, "status": "completed"}
    await client.responses.create(input="So?", conversation=conversation.id)
    roles = [message["role"] for message in scripted.generations[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]


async def test_the_whole_loop_works_on_plain_input_and_stores_nothing(client, scripted):
    scripted.script(tools=[BONN])
    asked: Any = [{"role": "user", "content": "Weather?"}]
    first = await client.responses.create(input=asked, tools=[WEATHER], store=False)
    asked += [item.model_dump() for item in first.output]
    asked.append({"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"})
    scripted.script(answer="Rain.", tools=None)
    second = await client.responses.create(input=asked, tools=[WEATHER], store=False)
    assert second.output_text == "Rain."
    assert [message["role"] for message in scripted.generations[-1].body["messages"]][-2:] == ["assistant", "tool"]


async def test_items_may_be_named_by_their_ids_if_they_are_ones_own(client, ready, scripted):
    scripted.script(tools=[BONN])
    first = await client.responses.create(input="Weather?", tools=[WEATHER])
    (call,) = first.output
    scripted.script(answer="Rain.", tools=None)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again: Any = [{"role": "user", "content": "So?"}, {"type": "item_reference", "id": call.id}, output]
    second = await client.responses.create(input=again)
    assert [message["role"] for message in scripted.generations[-1].body["messages"]][1:] == [
        "user",
        "assistant",
        "tool",
    ]
    listed = (await client.responses.input_items.list(second.id, order="asc")).data
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    async with await ready.client("stranger") as stranger:
        for id in (call.id, call.id.replace("fc_", "msg_"), "nothing"):
            with pytest.raises(openai.NotFoundError) as refused:
                await (stranger if id == call.id else client).responses.create(
                    input=[{"type": "item_reference", "id": id}]
                )
            assert refused.value.param == "input[0].id" and id in refused.value.message


async def test_the_output_of_an_unknown_call_is_refused_with_its_place_and_nothing_is_kept(client, scripted):
    conversation = await client.conversations.create()
    first = await client.responses.create(input="hi")
    asked: Any = [
        {"role": "user", "content": "x"},
        {"type": "function_call_output", "call_id": "call_9", "output": "y"},
    ]
    for more in (
        {},
        {"store": False},
        {"conversation": conversation.id},
        {"previous_response_id": first.id},
        {"previous_response_id": first.id, "store": False},
    ):
        with pytest.raises(openai.BadRequestError, match="call_9") as refused:
            await client.responses.create(input=asked, **more)
        assert refused.value.param == "input[1].call_id"
    with pytest.raises(openai.BadRequestError, match="call_9"):
        await client.responses.input_tokens.count(input=asked)
    assert [item async for item in client.conversations.items.list(conversation.id)] == []
    assert len(scripted.generations) == 1


async def test_only_allowed_tools_reach_the_engine_and_no_call_of_another_comes_out(client, scripted):
    scripted.script(
        answer="Hm.", tools=[BONN, {"name": "time", "arguments": {}}, {"name": "format_disk", "arguments": {}}]
    )
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    response = await client.responses.create(input="x", tools=[WEATHER, TIME], tool_choice=choice)
    body = scripted.generations[-1].body
    assert [tool["function"] for tool in body["tools"]] == [{"name": "time", "strict": True}]
    assert body["tool_choice"] == "required"
    assert [getattr(item, "name", None) for item in response.output] == [None, "time"]
    shown = response.model_dump()
    assert (shown["tool_choice"], [tool["name"] for tool in shown["tools"]]) == (choice, ["weather", "time"])


@pytest.mark.parametrize(("limits", "asked"), [({"parallel_tool_calls": False}, False), ({"max_tool_calls": 1}, True)])
async def test_not_more_calls_come_out_than_were_asked_for(client, scripted, limits, asked):
    scripted.script(tools=[BONN, BONN])
    response = await client.responses.create(input="x", tools=[WEATHER], **limits)
    assert len(response.output) == 1 and scripted.generations[-1].body["parallel_tool_calls"] is asked
    assert response.max_tool_calls == limits.get("max_tool_calls")


@pytest.mark.parametrize("choice", ["none", "required", {"type": "function", "name": "weather"}])
async def test_the_choice_of_tools_reaches_the_engine(client, scripted, choice):
    scripted.script(tools=[BONN], answer="Hello.")
    response = await client.responses.create(input="x", tools=[WEATHER, TIME], tool_choice=choice)
    body = scripted.generations[-1].body
    if choice == "none":
        assert response.output_text == "Hello." and not {"tools", "tool_choice"} & set(body)
    else:
        assert response.output[-1].type == "function_call" and len(body["tools"]) == 2
        named = {"type": "function", "function": {"name": "weather"}}
        assert body["tool_choice"] == (choice if choice == "required" else named)


async def test_a_call_cut_by_the_limit_is_incomplete_and_so_is_the_response(client, scripted):
    scripted.script(tools=[{"name": "weather", "arguments": {"city": "x" * 400}}])
    response = await client.responses.create(input="x", tools=[WEATHER], max_output_tokens=40)
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_a_streamed_call_is_replayed_byte_for_byte(ready, scripted, person):
    scripted.script(answer="I look.", tools=[BONN, {"name": "time", "arguments": {}}])
    key = await ready.key(person)
    body = {"input": "hi", "stream": True, "tools": [WEATHER, TIME]}
    first = await raw_stream(ready, key, "POST", "/v1/responses", body)
    id = json.loads(first.split(b"data: ", 1)[1].split(b"\n", 1)[0])["response"]["id"]
    assert await raw_stream(ready, key, "GET", f"/v1/responses/{id}?stream=true") == first
    rest = await raw_stream(ready, key, "GET", f"/v1/responses/{id}?stream=true&starting_after=8")
    assert first.endswith(rest) and b'"sequence_number":9' in rest.split(b"\n\n")[0]
    assert first.count(b"event: response.function_call_arguments.done") == 2


async def test_a_background_answer_may_call_tools(client, scripted):
    scripted.script(tools=[BONN])
    begun = await client.responses.create(input="x", tools=[WEATHER], background=True)
    events = await events_of(await client.responses.retrieve(begun.id, stream=True))
    assert events[-1]["response"]["output"][0]["name"] == "weather"


async def test_tools_are_part_of_the_count_of_a_prompt(client, scripted):
    counted = await client.responses.input_tokens.count(input="x", tools=[WEATHER])
    response = await client.responses.create(input="x", tools=[WEATHER])
    assert counted.input_tokens == response.usage.input_tokens == len(scripted.generations[-1].prompt_ids)
    assert counted.input_tokens > (await client.responses.input_tokens.count(input="x")).input_tokens + 20


@pytest.mark.parametrize("stream", [True, False])
async def test_the_form_of_an_answer_reaches_the_engine_and_is_echoed(client, scripted, stream):
    scripted.script(answer='{"city": "Bonn"}')
    if stream:
        *_, last = [event async for event in await client.responses.create(input="x", text=FORM, stream=True)]
        response = last.to_dict()["response"]
    else:
        response = (await client.responses.create(input="x", text=FORM)).to_dict()
    asked = {"name": "place", "schema": SCHEMA, "strict": True}
    assert scripted.generations[-1].body["response_format"] == {"type": "json_schema", "json_schema": asked}
    assert response["text"]["format"] == FORM["format"] | {"description": None}
    assert response["output"][0]["content"][0]["text"] == '{"city": "Bonn"}'
    await client.responses.create(input="x", text={"format": {"type": "json_object"}})
    assert scripted.generations[-1].body["response_format"] == {"type": "json_object"}


async def test_a_model_without_a_parser_is_not_given_tools(one_redis):
    with (
        FakeWorker(plan={"tool_parser": None}, model="small") as worker,
        GatewayProcess(one_redis, worker.url) as gateway,
    ):
        await gateway.until_ready()
        async with await gateway.client("tooled") as client:
            with pytest.raises(openai.BadRequestError, match="`small` is served without a tool parser") as refused:
                await client.responses.create(input="x", tools=[WEATHER])
            assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")
            assert worker.generations == []
            answered = await client.responses.create(input="x", tools=[WEATHER], tool_choice="none")
            assert answered.status == "completed"


# when the engine dies ------------------------------------------------------------------------------------------------

LONG = {"name": "weather", "arguments": {"city": "x" * 300}}


@pytest.mark.parametrize("text", ["I look it up.\n", "I look it up."], ids=["a border", "inside a token"])
async def test_a_call_that_was_being_written_when_the_engine_died_is_written_again_unseen(client, scripted, text):
    spoken = len(tokenize(text))
    scripted.script(answer=text, tools=[LONG], fail=f"close_after:{spoken + 20}", times=1, pace_ms=2)
    events = await events_of(await client.responses.create(input="x", tools=[WEATHER], stream=True))
    states = [event["state"] for event in events if event["type"] == "deskmate:progress"]
    assert (states[0], states[-1]) == ("engine_lost", "resuming")
    response = events[-1]["response"]
    message, call = response["output"]
    assert (message["content"][0]["text"], json.loads(call["arguments"])) == (text, LONG["arguments"])
    assert len([event for event in events if event["type"] == "response.output_item.added"]) == 2
    first, second = scripted.generations[0], scripted.generations[-1]
    common = tokenize(text) if text.endswith("\n") else tokenize(text)[:-1]
    assert second.prompt_ids == [*first.prompt_ids, *common]
    assert second.path == "/v1/chat/completions" and second.body["tools"] == first.body["tools"]
    assert response["usage"]["input_tokens"] == len(first.prompt_ids)
    assert response["usage"]["output_tokens"] == second.tokens_sent + len(common)


async def test_a_text_cut_before_its_call_goes_on_from_its_tokens_and_calls(client, scripted):
    scripted.script(answer="I look it up in the book.", tools=[LONG], fail="close_after:4", times=1, pace_ms=2)
    events = await events_of(await client.responses.create(input="x", tools=[WEATHER], stream=True))
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look it up in the book." and call["name"] == "weather"


async def test_an_answer_of_a_given_form_is_written_again_when_nobody_reads_along(client, scripted):
    scripted.script(answer='{"city": "Bonn am Rhein"}', fail="close_after:4", times=1)
    response = await client.responses.create(input="x", text=FORM)
    assert (response.status, response.output_text) == ("completed", '{"city": "Bonn am Rhein"}')
    first, second = scripted.generations[0], scripted.generations[-1]
    assert first.prompt_ids == second.prompt_ids and second.body["response_format"] == first.body["response_format"]
    assert response.usage.output_tokens == second.tokens_sent


async def test_a_streamed_answer_of_a_given_form_goes_on_if_it_is_written_as_it_was_seen(client, scripted):
    scripted.script(answer='{"city": "Bonn am Rhein"}', fail="close_after:4", times=1, pace_ms=10)
    events = await events_of(await client.responses.create(input="x", text=FORM, stream=True))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert events[-1]["type"] == "response.completed" and text == '{"city": "Bonn am Rhein"}'
    assert len([event for event in events if event["type"] == "response.output_text.delta"]) > 1


async def test_a_streamed_answer_of_a_given_form_fails_where_it_is_written_otherwise(client, scripted):
    scripted.script(answer='{"city": "' + "Bonn " * 40 + '"}', pace_ms=20)
    events, died = [], False
    async for event in await client.responses.create(input="x", text=FORM, stream=True):
        events.append(event.model_dump())
        if not died and [event["type"] for event in events].count("response.output_text.delta") == 2:
            died = True
            scripted.stop()
            scripted.script(answer='{"village": "Bonn"}', pace_ms=0)
            scripted.start()
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["error"]["code"] == "engine_lost"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_a_raw_post_with_a_hosted_tool_names_its_type(ready, person):
    async with httpx2.AsyncClient(
        base_url=ready.url, headers={"authorization": f"Bearer {await ready.key(person)}"}
    ) as http:
        answer = await http.post("/v1/responses", json={"input": "x", "tools": [{"type": "web_search"}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "tools[0].type")
    assert "web_search" in error["message"]
