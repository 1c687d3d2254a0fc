"""How much of the official SDKs' types the gateway fills: every field of every object and event that it sends.

`python -m tests.flow.conformance` starts a gateway before a scripted worker, asks for one of each and writes the figure
into docs/api.md. A value is read strictly: another type, or a required field that is missing, is an error here.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anthropic
import httpx2
import openai
import pydantic
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem, ConversationItemList
from openai.types.responses import (
    CompactedResponse,
    Response,
    ResponseItemList,
    ResponseQueuedEvent,
    ResponseStreamEvent,
)
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from openai.types.shared import ErrorObject

from tests.docs import blocks
from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import some_redis

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCK = "conformance"
HELLO = [{"role": "user", "content": "hello there"}]
CHAT_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
TOOL = {"type": "function", "name": "look_up", "description": "Look it up.", "parameters": {"type": "object"}}
CALLED = [{"name": "look_up", "arguments": {"word": "a"}}]

# Why a field is never there, by its name, or by its type and name.
_THEIRS = "a service of OpenAI's"
_CACHE = "the engine's cache has no settings and no diagnoses"
_BY_MODEL = "only the model calls functions"
_ENGINE = "the engine does not send it"
ABSENT: Mapping[str, str] = {
    **dict.fromkeys(("access_programs", "input_transformations", "misalignment", "moderation"), _THEIRS),
    **dict.fromkeys(("image", "tool_usage"), "no tools that OpenAI runs"),
    **dict.fromkeys(("prompt_cache_breakpoint", "prompt_cache_diagnostics", "prompt_cache_options"), _CACHE),
    **dict.fromkeys(("prompt_cache_retention", "cache_write_tokens_details"), _CACHE),
    **dict.fromkeys(("allowed_callers", "async_", "caller", "defer_loading", "namespace"), _BY_MODEL),
    **dict.fromkeys(("output_schema", "ResponseFunctionToolCallOutputItem.name"), _BY_MODEL),
    **dict.fromkeys(("context", "mode"), "one mode; what is read again is the request's affair"),
    **dict.fromkeys(("audio", "audio_tokens", "image_tokens", "text_tokens"), "texts only"),
    **dict.fromkeys(("refusal", "service_tier", "cache_write_tokens"), _ENGINE),
    **dict.fromkeys(("ResponseError.type", "ResponseError.param"), "code and message say it"),
    **dict.fromkeys(("accepted_prediction_tokens", "rejected_prediction_tokens"), _ENGINE),
    "phase": "the engine names none",
    "created_by": "always the caller",
    "encrypted_content": "thoughts are given in the clear",
    "function_call": "deprecated",
    "generate_summary": "deprecated",
    "metadata": "the relays store nothing",
    "obfuscation": "none is sent",
    "prompt": "no stored prompts",
    "shutdown_date": "none is planned",
    "user": "deprecated; taken, not given back",
    "verbosity": "cannot be set",
}

# Fields that come with what the type does not know: where in the value, whose field, what would be read instead.
OTHERWISE: Mapping[str, tuple[str, Any, str]] = {
    "choices.finish_reason": (
        "CompletionChoice.finish_reason",
        "stop",
        "null until the last event, as OpenAI sends it",
    ),
    "compaction": ("CompactedResponse.output", None, "people's messages stand in it, too, as at OpenAI"),
    "response.error.code": ("ResponseError.code", "server_error", "the codes of our errors, which say more"),
}

# Why an event of the SDK is never sent, by what its type's name holds.
NEVER_SENT: Mapping[str, str] = {
    "CodeInterpreter|FileSearch|WebSearch|ImageGen|Mcp|Shell|CustomTool": "calls of tools that are no functions",
    "Audio": "no audio",
    "ReasoningSummary": "thoughts are given as they are, not summarised",
    "Refusal": "a refusal is said as text",
    "Annotation": "nothing is cited",
    "Compacting": "no input item asks for a compaction",
    "ResponseErrorEvent": "a bare `error`: over HTTP it is `response.failed`, over WebSocket it has `error`",
}

Kind = type[pydantic.BaseModel]


@dataclass
class Figure:
    """Which fields were there, by type; what was read of it was of the right type."""

    seen: dict[Kind, set[str]] = field(default_factory=lambda: defaultdict(set))
    otherwise: set[str] = field(default_factory=set)

    def take(self, kind: Any, raw: str | bytes) -> None:
        """Raises ValidationError for a value that is not of the type, but for what is known to be otherwise."""
        adapter = pydantic.TypeAdapter(kind)
        try:
            self._walk(adapter.validate_json(raw, strict=True))
        except pydantic.ValidationError as error:
            self._walk(adapter.validate_json(json.dumps(self._mended(json.loads(raw), error)), strict=True))

    def _mended(self, value: Any, error: pydantic.ValidationError) -> Any:
        for place in (one["loc"] for one in error.errors()):
            path = ".".join(step for step in place if isinstance(step, str))
            if path not in OTHERWISE:
                raise error
            name, instead, _ = OTHERWISE[path]
            self.otherwise.add(name)
            holder = value
            for step in place[:-1]:
                holder = holder[step]
            holder[place[-1]] = instead
        return value

    def _walk(self, value: Any) -> None:
        if isinstance(value, pydantic.BaseModel):
            kind = type(value)
            self.seen[kind] |= value.model_fields_set & set(kind.model_fields)
            for name in kind.model_fields:
                self._walk(getattr(value, name))
        elif isinstance(value, list):
            for item in value:
                self._walk(item)

    def kinds(self) -> list[Kind]:
        return sorted(self.seen, key=lambda kind: (kind.__module__.partition(".")[0] != "openai", kind.__name__))

    def missing(self, kind: Kind) -> dict[str, list[str]]:
        """Fields that were never there, or of another type, by the reason."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in kind.model_fields:
            if f"{kind.__name__}.{name}" in self.otherwise:
                found[next(why for field, _, why in OTHERWISE.values() if field == f"{kind.__name__}.{name}")].append(
                    name
                )
            elif name not in self.seen[kind]:
                found[reason_of(kind, name)].append(name)
        return found

    def never_sent(self) -> dict[str, int]:
        """How many events of the SDK are never sent, by the reason."""
        found: dict[str, int] = defaultdict(int)
        for kind in EVENTS.values():
            if kind not in self.seen:
                found[reason_not_sent(kind.__name__)] += 1
        return found


EVENTS: Mapping[str, Kind] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}


def reason_of(kind: Kind, name: str) -> str:
    """Raises LookupError for a field that nobody has given a reason for."""
    if kind.__module__.startswith("anthropic."):
        return _ENGINE
    if why := ABSENT.get(f"{kind.__name__}.{name}") or ABSENT.get(name):
        return why
    raise LookupError(f"say in ABSENT why {kind.__name__}.{name} is never there")


def reason_not_sent(name: str) -> str:
    return next(why for pattern, why in NEVER_SENT.items() if re.search(pattern, name))


# how it is shown ------------------------------------------------------------------------------------------------------


def shown(figure: Figure) -> str:
    """The block of docs/api.md."""
    kinds = figure.kinds()
    gaps = {kind: gap for kind in kinds if (gap := figure.missing(kind))}
    there, defined = (
        sum(map(count, kinds)) for count in (lambda kind: _there(kind, gaps), lambda k: len(k.model_fields))
    )
    whole = [name_of(kind, kinds) for kind in kinds if kind not in gaps]
    rows = [
        f"| {name_of(kind, kinds)} | {_there(kind, gaps)} of {len(kind.model_fields)} | {_why(gap)} |"
        for kind, gap in gaps.items()
    ]
    sent = sum(kind in figure.seen for kind in EVENTS.values())
    unsent = sorted(figure.never_sent().items(), key=lambda one: (-one[1], one[0]))
    return "\n".join(
        [
            f"**{there} of {defined} fields** ({there / defined:.0%}) of {len(kinds)} types are there and right.",
            f"The SDKs are `openai` {openai.__version__} and `anthropic` {anthropic.__version__}.",
            "",
            "| type | fields | not there, and why |",
            "|---|---|---|",
            *rows,
            f"| {', '.join(whole)} | all | – |",
            "",
            f"Of the {len(EVENTS)} types of events of a response {sent} are sent. Not sent:",
            "; ".join(f"{why} ({count})" for why, count in unsent) + ".",
        ]
    )


def _there(kind: Kind, gaps: Mapping[Kind, Mapping[str, list[str]]]) -> int:
    return len(kind.model_fields) - sum(map(len, gaps.get(kind, {}).values()))


def _why(gap: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(f'`{name}`' for name in names)}: {why}" for why, names in gap.items())


def name_of(kind: Kind, kinds: Iterable[Kind]) -> str:
    """With its module where two have the same name."""
    twins = sum(other.__name__ == kind.__name__ for other in kinds)
    return f"`{kind.__module__.rpartition('.')[2]}.{kind.__name__}`" if twins > 1 else f"`{kind.__name__}`"


# one of each ----------------------------------------------------------------------------------------------------------


async def measure(http: httpx2.AsyncClient, worker: FakeWorker) -> Figure:
    figure = Figure()
    for part in (_responses, _a_queue, _conversations, _relays, _the_rest):
        worker.script(answer=None, tools=None, thoughts=None, pace_ms=0, fail=None)
        await part(figure, http, worker)
    return figure


async def _responses(figure: Figure, http: httpx2.AsyncClient, worker: FakeWorker) -> None:
    worker.script(tools=CALLED)
    asked = {"input": "hello", "tools": [TOOL], "instructions": "Be short.", "metadata": {"a": "b"}, "user": "ada"}
    whole = await http.post("/v1/responses", json=asked)
    figure.take(Response, whole.content)
    where = f"/v1/responses/{whole.json()['id']}"
    figure.take(Response, (await http.get(where)).content)
    figure.take(ResponseItemList, (await http.get(f"{where}/input_items")).content)
    figure.take(InputTokenCountResponse, (await http.post("/v1/responses/input_tokens", json=asked)).content)
    await _stream(figure, http, asked)
    worker.script(tools=None)
    await _compacted(figure, http)
    await _stream(figure, http, {"input": "hello"})
    await _stream(figure, http, {"input": "hello", "max_output_tokens": 16, "top_logprobs": 1})
    form = {"type": "json_schema", "name": "word", "description": "A word.", "schema": {}, "strict": True}
    worker.script(answer="Hello.", thoughts="I greet.")
    await _stream(figure, http, {"input": "hello"})
    worker.script(answer="{}", thoughts=None)
    await _stream(figure, http, {"input": "hello", "text": {"format": form}})
    worker.script(answer=None, fail="garbage", times=1)
    await _stream(figure, http, {"input": "hello"})


async def _compacted(figure: Figure, http: httpx2.AsyncClient) -> None:
    """The SDK's type knows only what a model says; the messages of people stand in the output, too."""
    short = (await http.post("/v1/responses/compact", json={"model": "fake", "input": "hello"})).json()
    only = [item for item in short["output"] if item["type"] == "compaction"]
    assert len(only) == 1 and len(short["output"]) == 2
    figure.otherwise.add(OTHERWISE["compaction"][0])
    figure.take(CompactedResponse, json.dumps({**short, "output": only}))


async def _stream(figure: Figure, http: httpx2.AsyncClient, asked: Mapping[str, Any]) -> None:
    for event in events_in((await http.post("/v1/responses", json={**asked, "stream": True})).text):
        if ":" not in json.loads(event)["type"]:
            figure.take(EVENTS[json.loads(event)["type"]], event)


async def _a_queue(figure: Figure, http: httpx2.AsyncClient, worker: FakeWorker) -> None:
    """One more than there are seats: it waits until the others are ended."""
    worker.script(pace_ms=500)
    begun = [await http.post("/v1/responses", json={"input": "hello", "background": True}) for _ in range(4)]
    async with http.stream("POST", "/v1/responses", json={"input": "hello", "stream": True}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith('data: {"type":"response.queued"'):
                figure.take(ResponseQueuedEvent, line.removeprefix("data: "))
                break
    worker.script(pace_ms=0)
    for one in begun:
        await http.post(f"/v1/responses/{one.json()['id']}/cancel")


async def _conversations(figure: Figure, http: httpx2.AsyncClient, worker: FakeWorker) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "found"}
    answer = {"role": "assistant", "content": "hi", "phase": "final_answer"}
    seen = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    made = await http.post("/v1/conversations", json={"items": [*HELLO, thought, answer, refusal, call, output, seen]})
    where = f"/v1/conversations/{made.json()['id']}"
    figure.take(Conversation, made.content)
    items = await http.get(f"{where}/items")
    figure.take(ConversationItemList, items.content)
    for item in items.json()["data"]:
        figure.take(ConversationItem, (await http.get(f"{where}/items/{item['id']}")).content)
    figure.take(
        Response, (await http.post("/v1/responses", json={"input": "hello", "conversation": made.json()["id"]})).content
    )
    figure.take(ConversationDeletedResource, (await http.delete(where)).content)


async def _relays(figure: Figure, http: httpx2.AsyncClient, worker: FakeWorker) -> None:
    for tools, thoughts in ((None, None), (CALLED, None), (None, "I greet.")):
        worker.script(tools=tools, thoughts=thoughts)
        chat = {"model": "fake", "messages": HELLO, "tools": [CHAT_TOOL], "max_tokens": 40}
        chat |= {"logprobs": True, "top_logprobs": 1}
        figure.take(ChatCompletion, (await http.post("/v1/chat/completions", json=chat)).content)
        streamed = {**chat, "stream": True, "stream_options": {"include_usage": True}}
        _take_all(figure, ChatCompletionChunk, await http.post("/v1/chat/completions", json=streamed))
        claude = {
            "model": "fake",
            "messages": HELLO,
            "max_tokens": 40,
            "tools": [{"name": "look_up", "input_schema": {}}],
        }
        figure.take(anthropic.types.Message, (await http.post("/v1/messages", json=claude)).content)
        if thoughts:
            continue  # of a stream: vLLM's block of thoughts begins without the `signature` that it ends with
        _take_all(
            figure,
            anthropic.types.RawMessageStreamEvent,
            await http.post("/v1/messages", json={**claude, "stream": True}),
        )
    text = {"model": "fake", "prompt": "hello", "max_tokens": 4, "logprobs": 1}
    figure.take(Completion, (await http.post("/v1/completions", json=text)).content)
    _take_all(figure, Completion, await http.post("/v1/completions", json={**text, "stream": True}))
    counted = await http.post("/v1/messages/count_tokens", json={"model": "fake", "messages": HELLO})
    figure.take(anthropic.types.MessageTokensCount, counted.content)


def _take_all(figure: Figure, kind: Any, answer: httpx2.Response) -> None:
    for event in events_in(answer.text):
        figure.take(kind, event)


async def _the_rest(figure: Figure, http: httpx2.AsyncClient, worker: FakeWorker) -> None:
    figure.take(Model, (await http.get("/v1/models/fake")).content)
    refused = (await http.get("/v1/models/other")).json()["error"]
    figure.take(ErrorObject, json.dumps(refused))


def events_in(text: str) -> Iterator[str]:
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: "))
    return (line for line in lines if line != "[DONE]")


async def _main() -> None:
    with some_redis() as redis, FakeWorker(seats=4) as worker, GatewayProcess(redis, worker.url) as gateway:
        await gateway.until_ready()
        async with caller(gateway, await gateway.key("ada")) as http:
            blocks.put(PAGE, BLOCK, shown(await measure(http, worker)))


def caller(gateway: GatewayProcess, key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


if __name__ == "__main__":
    asyncio.run(_main())
