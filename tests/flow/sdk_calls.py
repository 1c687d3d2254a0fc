"""Every call of the official Python SDKs that applies here: one function each, which asserts that it works.

The first line of its docstring is what docs/api.md says of it: `python -m tests.flow.sdk_calls` makes that table.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from tests.docs import blocks
from tests.fake_worker import FakeWorker, answer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCK = "sdk calls"
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
FUNCTION = {"name": "look_up", "description": "Look it up.", "parameters": {"type": "object"}}


class Word(pydantic.BaseModel):
    word: str


@dataclass(frozen=True)
class Desk:
    """A running stack, and the official clients of one person."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    worker: FakeWorker


Call = Callable[[Desk], Awaitable[None]]
WORKS: dict[str, Call] = {}


def call(name: str) -> Callable[[Call], Call]:
    def keep(function: Call) -> Call:
        assert name not in WORKS
        WORKS[name] = function
        return function

    return keep


# openai: models, chat, completions ------------------------------------------------------------------------------------


@call("openai models.list")
async def models_list(desk: Desk) -> None:
    """the served model"""
    assert [model.id async for model in desk.openai.models.list()] == ["fake"]


@call("openai models.retrieve")
async def models_retrieve(desk: Desk) -> None:
    """the served one; any other is 404"""
    assert (await desk.openai.models.retrieve("fake")).owned_by == "deskmate"
    with pytest.raises(openai.NotFoundError):
        await desk.openai.models.retrieve("other")


@call("openai chat.completions.create")
async def chat_create(desk: Desk) -> None:
    """whole and with `stream`, `tools`, `stop`, `seed`, `stream_options`"""
    whole = await desk.openai.chat.completions.create(model="fake", messages=HELLO, max_tokens=6)
    assert whole.choices[0].message.content == answer(HELLO, 6)
    stream = await desk.openai.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(HELLO, 6) and chunks[-1].usage.completion_tokens == 6
    desk.worker.script(tools=[{"name": "look_up", "arguments": {"word": "a"}}])
    called = await desk.openai.chat.completions.create(
        model="fake", messages=HELLO, tools=[{"type": "function", "function": FUNCTION}], seed=1, stop=["\n\n\n"]
    )
    (tool_call,) = called.choices[0].message.tool_calls
    assert tool_call.function.arguments == '{"word":"a"}'


@call("openai chat.completions.stream")
async def chat_stream(desk: Desk) -> None:
    """the helper's events and its final completion"""
    async with desk.openai.chat.completions.stream(model="fake", messages=HELLO) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == answer(HELLO)


@call("openai chat.completions.parse")
async def chat_parse(desk: Desk) -> None:
    """`response_format` of a class reaches the engine as its JSON schema"""
    desk.worker.script(answer='{"word": "tree"}')
    parsed = await desk.openai.chat.completions.parse(model="fake", messages=HELLO, response_format=Word)
    assert parsed.choices[0].message.parsed == Word(word="tree")
    assert desk.worker.generations[-1].body["response_format"]["json_schema"]["name"] == "Word"


@call("openai completions.create")
async def completions_create(desk: Desk) -> None:
    """whole and with `stream`"""
    whole = await desk.openai.completions.create(model="fake", prompt="hello", max_tokens=4)
    stream = await desk.openai.completions.create(model="fake", prompt="hello", max_tokens=4, stream=True)
    assert whole.choices[0].text == "".join([chunk.choices[0].text async for chunk in stream]) != ""


# openai: responses ----------------------------------------------------------------------------------------------------


@call("openai responses.create")
async def responses_create(desk: Desk) -> None:
    """whole, with `stream`, with `previous_response_id`"""
    whole = await desk.openai.responses.create(input="hello")
    next = await desk.openai.responses.create(input="go on", previous_response_id=whole.id)
    assert whole.output_text and next.previous_response_id == whole.id
    stream = await desk.openai.responses.create(input="hello", stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.completed" and events[-1].response.output_text == whole.output_text


@call("openai responses.stream")
async def responses_stream(desk: Desk) -> None:
    """the helper's events and its final response"""
    async with desk.openai.responses.stream(model="fake", input="hello") as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert final.output_text == text != ""


@call("openai responses.parse")
async def responses_parse(desk: Desk) -> None:
    """`text_format` of a class, read back as one"""
    desk.worker.script(answer='{"word": "tree"}')
    parsed = await desk.openai.responses.parse(model="fake", input="hello", text_format=Word)
    assert parsed.output_parsed == Word(word="tree")


@call("openai responses.retrieve")
async def responses_retrieve(desk: Desk) -> None:
    """whole; with `stream` a replay, from `starting_after` on"""
    made = await desk.openai.responses.create(input="hello")
    assert await desk.openai.responses.retrieve(made.id) == made
    stream = await desk.openai.responses.retrieve(made.id, stream=True, starting_after=3)
    events = [event async for event in stream]
    assert events[0].sequence_number == 4 and events[-1].response.output_text == made.output_text


@call("openai responses.cancel")
async def responses_cancel(desk: Desk) -> None:
    """any running response of the caller"""
    desk.worker.script(pace_ms=200)
    made = await desk.openai.responses.create(input="hello", background=True)
    assert (await desk.openai.responses.cancel(made.id)).status == "cancelled"


@call("openai responses.delete")
async def responses_delete(desk: Desk) -> None:
    """then it is 404"""
    made = await desk.openai.responses.create(input="hello")
    await desk.openai.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await desk.openai.responses.retrieve(made.id)


@call("openai responses.compact")
async def responses_compact(desk: Desk) -> None:
    """its output is an `input` as it is"""
    short = await desk.openai.responses.compact(model="fake", input="hello")
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]  # a person's among them
    assert (await desk.openai.responses.create(input=[*items, *HELLO])).status == "completed"


@call("openai responses.input_items.list")
async def input_items_list(desk: Desk) -> None:
    """in pages"""
    made = await desk.openai.responses.create(input=[*HELLO, {"role": "assistant", "content": "hi"}, *HELLO])
    items = [item async for item in desk.openai.responses.input_items.list(made.id, order="asc", limit=2)]
    assert [item.role for item in items] == ["user", "assistant", "user"]


@call("openai responses.input_tokens.count")
async def input_tokens_count(desk: Desk) -> None:
    """what the prompt will hold"""
    counted = await desk.openai.responses.input_tokens.count(input="hello")
    assert counted.input_tokens == (await desk.openai.responses.create(input="hello")).usage.input_tokens


# openai: conversations ------------------------------------------------------------------------------------------------


@call("openai conversations.create")
async def conversations_create(desk: Desk) -> None:
    """empty, or with items and metadata"""
    assert (await desk.openai.conversations.create()).metadata == {}
    made = await desk.openai.conversations.create(items=HELLO, metadata={"a": "b"})
    assert made.metadata == {"a": "b"}


@call("openai conversations.retrieve")
async def conversations_retrieve(desk: Desk) -> None:
    """as it was made"""
    made = await desk.openai.conversations.create()
    assert await desk.openai.conversations.retrieve(made.id) == made


@call("openai conversations.update")
async def conversations_update(desk: Desk) -> None:
    """other metadata"""
    made = await desk.openai.conversations.create(metadata={"a": "b"})
    assert (await desk.openai.conversations.update(made.id, metadata={"c": "d"})).metadata == {"c": "d"}


@call("openai conversations.delete")
async def conversations_delete(desk: Desk) -> None:
    """then it is 404"""
    made = await desk.openai.conversations.create()
    assert (await desk.openai.conversations.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await desk.openai.conversations.retrieve(made.id)


@call("openai conversations.items.create")
async def items_create(desk: Desk) -> None:
    """up to 20 at once"""
    made = await desk.openai.conversations.create()
    added = await desk.openai.conversations.items.create(made.id, items=HELLO)
    assert added.data[0].content[0].text == HELLO[0]["content"]


@call("openai conversations.items.list")
async def items_list(desk: Desk) -> None:
    """in pages"""
    made = await desk.openai.conversations.create(items=HELLO * 3)
    assert len([item async for item in desk.openai.conversations.items.list(made.id, limit=2)]) == 3


@call("openai conversations.items.retrieve")
async def items_retrieve(desk: Desk) -> None:
    """one item"""
    made = await desk.openai.conversations.create(items=HELLO)
    async for item in desk.openai.conversations.items.list(made.id):
        assert await desk.openai.conversations.items.retrieve(item.id, conversation_id=made.id) == item


@call("openai conversations.items.delete")
async def items_delete(desk: Desk) -> None:
    """the answer is the conversation"""
    made = await desk.openai.conversations.create(items=HELLO * 2)
    first = await anext(aiter(desk.openai.conversations.items.list(made.id)))
    assert (await desk.openai.conversations.items.delete(first.id, conversation_id=made.id)).id == made.id
    assert len([item async for item in desk.openai.conversations.items.list(made.id)]) == 1


# anthropic ------------------------------------------------------------------------------------------------------------


@call("anthropic messages.create")
async def messages_create(desk: Desk) -> None:
    """whole and with `stream`, `system`, `stop_sequences`, `tools`"""
    told: Any = [{"role": "system", "content": "Be short."}, *HELLO]
    whole = await desk.anthropic.messages.create(model="fake", max_tokens=6, messages=HELLO, system="Be short.")
    assert whole.content[0].text == answer(told, 6) and whole.stop_reason == "max_tokens"
    word = whole.content[0].text.split()[1]
    stopped = await desk.anthropic.messages.create(
        model="fake", max_tokens=6, messages=HELLO, system="Be short.", stop_sequences=[word]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    stream = await desk.anthropic.messages.create(model="fake", max_tokens=6, messages=HELLO, stream=True)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


@call("anthropic messages.create with tools")
async def messages_tools(desk: Desk) -> None:
    """`tool_use` blocks, and their results sent back"""
    desk.worker.script(tools=[{"name": "look_up", "arguments": {"word": "a"}}])
    tools: Any = [{"name": "look_up", "input_schema": {"type": "object"}}]
    called = await desk.anthropic.messages.create(model="fake", max_tokens=40, messages=HELLO, tools=tools)
    (block,) = called.content
    assert (called.stop_reason, block.input) == ("tool_use", {"word": "a"})
    desk.worker.script(tools=None)
    result: Any = [
        {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "found"}]},
    ]
    said = await desk.anthropic.messages.create(model="fake", max_tokens=6, messages=HELLO + result, tools=tools)
    assert said.content[0].text


@call("anthropic messages.stream")
async def messages_stream(desk: Desk) -> None:
    """the helper's text and its final message"""
    async with desk.anthropic.messages.stream(model="fake", max_tokens=6, messages=HELLO) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert final.content[0].text == text == answer(HELLO, 6)


@call("anthropic messages.count_tokens")
async def messages_count(desk: Desk) -> None:
    """what `messages.create` then uses"""
    counted = await desk.anthropic.messages.count_tokens(model="fake", messages=HELLO)
    whole = await desk.anthropic.messages.create(model="fake", max_tokens=1, messages=HELLO)
    assert counted.input_tokens == whole.usage.input_tokens


@call("anthropic models.list")
async def anthropic_models_list(desk: Desk) -> None:
    """the served model"""
    assert [model.display_name async for model in desk.anthropic.models.list()] == ["fake"]


@call("anthropic models.retrieve")
async def anthropic_models_retrieve(desk: Desk) -> None:
    """with the time since when it is served"""
    model = await desk.anthropic.models.retrieve("fake")
    assert (model.type, model.created_at.tzinfo is not None) == ("model", True)


# what is refused, by its type -----------------------------------------------------------------------------------------

# The call, and the status that it gets.
REFUSED: Mapping[str, tuple[Callable[[Desk], Any], int]] = {
    "openai chat.completions.list": (lambda desk: desk.openai.chat.completions.list(), 404),
    "openai chat.completions.retrieve": (lambda desk: desk.openai.chat.completions.retrieve("a"), 404),
    "openai chat.completions.update": (lambda desk: desk.openai.chat.completions.update("a", metadata={}), 404),
    "openai chat.completions.delete": (lambda desk: desk.openai.chat.completions.delete("a"), 404),
    "openai chat.completions.messages.list": (lambda desk: desk.openai.chat.completions.messages.list("a"), 404),
    "openai embeddings.create": (lambda desk: desk.openai.embeddings.create(model="fake", input="a"), 404),
    "openai files.create": (lambda desk: desk.openai.files.create(file=b"a", purpose="user_data"), 415),
    "openai files.list": (lambda desk: desk.openai.files.list(), 404),
    "openai files.retrieve": (lambda desk: desk.openai.files.retrieve("a"), 404),
    "openai files.content": (lambda desk: desk.openai.files.content("a"), 404),
    "openai files.delete": (lambda desk: desk.openai.files.delete("a"), 404),
    "openai vector_stores.create": (lambda desk: desk.openai.vector_stores.create(), 404),
    "openai vector_stores.list": (lambda desk: desk.openai.vector_stores.list(), 404),
    "openai vector_stores.retrieve": (lambda desk: desk.openai.vector_stores.retrieve("a"), 404),
    "openai vector_stores.update": (lambda desk: desk.openai.vector_stores.update("a"), 404),
    "openai vector_stores.delete": (lambda desk: desk.openai.vector_stores.delete("a"), 404),
    "openai vector_stores.search": (lambda desk: desk.openai.vector_stores.search("a", query="a"), 404),
    "openai models.delete": (lambda desk: desk.openai.models.delete("fake"), 405),
}

# Calls that other tests make, by the test that does.
ELSEWHERE: Mapping[str, str] = {
    "openai responses.connect": "test_socket.py: test_the_official_client_speaks_several_turns_on_one_connection",
}

# Helpers that only call others of these, and what the route does not have.
NOT_CALLED: Mapping[str, str] = {
    r"openai files\.(retrieve_content|wait_for_processing)": "helpers of what is refused",
    r"openai vector_stores\.(files|file_batches)\b.*": "parts of what is refused",
    r"anthropic messages\.parse": "vLLM's route does not read `output_config` for it",
    r"anthropic messages\.batches\b.*": "no batches",
}


# how it is shown ------------------------------------------------------------------------------------------------------


def shown() -> str:
    """The block of docs/api.md."""
    rows = [f"| `{name}` | {told(function)} |" for name, function in WORKS.items()]
    rows += [f"| `{name}` | `tests/flow/{test.partition(':')[0]}` |" for name, test in ELSEWHERE.items()]
    refused = [f"`{name}`" for name, (_, status) in REFUSED.items() if status == 404]
    others = [f"| `{name}` | {status} |" for name, (_, status) in REFUSED.items() if status != 404]
    return "\n".join(
        [
            f"{len(WORKS) + len(ELSEWHERE)} calls work, {len(REFUSED)} are refused by a typed error. "
            f"`openai` {openai.__version__}, `anthropic` {anthropic.__version__}.",
            "",
            "| call | what is tested |",
            "|---|---|",
            *rows,
            f"| {', '.join(refused)} | 404 `unsupported_endpoint` |",
            *others,
        ]
    )


def told(function: Call) -> str:
    return (function.__doc__ or "").strip()


def calls_of(resource: Any, path: str) -> Iterator[str]:
    """Every public method of a resource of a client, by its path."""
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        found = getattr(resource, name)
        yield from [f"{path}.{name}"] if callable(found) else calls_of(found, f"{path}.{name}")


def is_known(name: str) -> bool:
    return name in {**WORKS, **REFUSED, **ELSEWHERE} or any(re.fullmatch(pattern, name) for pattern in NOT_CALLED)


if __name__ == "__main__":
    blocks.put(PAGE, BLOCK, shown())
