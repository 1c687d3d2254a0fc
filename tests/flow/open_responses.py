"""What Open Responses (2026-04-24) requires of every body and every event: a strict reading, and the order of a stream.

Every field named here must be there and of its type, null only where it says so; what is not named may not be there.
What a client of the official SDK reads is checked with its own types. Knows no server.
"""

import itertools
import json
import re
from typing import Any, Literal, get_args

import msgspec
import pydantic
from openai.types.responses import Response as OfficialResponse
from openai.types.responses import ResponseItem, ResponsesServerEvent, ResponseUsage

Json = dict[str, Any]
Number = int | float


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


# items ----------------------------------------------------------------------------------------------------------------


class InputText(_Strict, tag_field="type", tag="input_text"):
    text: str


class InputImage(_Strict, tag_field="type", tag="input_image"):
    detail: Literal["low", "high", "auto", "original"]
    image_url: str | None
    file_id: str | None


class OutputText(_Strict, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Json]
    logprobs: list[Json]


class OutputRefusal(_Strict, tag_field="type", tag="refusal"):
    refusal: str


Status = Literal["in_progress", "completed", "incomplete"]


class Message(_Strict, tag_field="type", tag="message"):
    id: str
    status: Status
    role: Literal["user", "assistant", "system", "developer"]
    content: list[InputText | InputImage | OutputText | OutputRefusal]
    phase: Literal["commentary", "final_answer"] | msgspec.UnsetType = msgspec.UNSET


class FunctionCall(_Strict, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(_Strict, tag_field="type", tag="function_call_output"):
    id: str
    status: Status
    call_id: str
    output: str | list[InputText | InputImage]


class Compaction(_Strict, tag_field="type", tag="compaction"):
    id: str
    encrypted_content: str


Item = Message | FunctionCall | FunctionCallOutput | Compaction


# the response ---------------------------------------------------------------------------------------------------------


class Reason(_Strict):
    reason: Literal["max_output_tokens", "content_filter"]


class Error(_Strict):
    code: str
    message: str


class Tool(_Strict):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: Json | None
    strict: bool | None


class TextFormat(_Strict):
    format: Json


class Reasoning(_Strict):
    effort: str | None
    summary: str | None


class InputDetails(_Strict):
    cached_tokens: int
    cache_write_tokens: int  # the official type asks for it


class OutputDetails(_Strict):
    reasoning_tokens: int


class Usage(_Strict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ConversationName(_Strict):
    id: str


class Response(_Strict):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    incomplete_details: Reason | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[Item]
    error: Error | None
    tools: list[Tool]
    tool_choice: str | Json
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: TextFormat
    top_p: Number
    presence_penalty: Number
    frequency_penalty: Number
    top_logprobs: int
    temperature: Number
    reasoning: Reasoning | None
    usage: Usage | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    background: bool
    service_tier: str
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None
    conversation: ConversationName | None  # ours and OpenAI's, beside the 31 of Open Responses


class CompactedBody(_Strict):
    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[Item]
    usage: Usage


class ErrorObject(_Strict):
    type: str
    code: str | None
    message: str
    param: str | None


class SocketErrorObject(ErrorObject):
    headers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET  # what HTTP would say in its head


class ErrorBody(_Strict):
    error: ErrorObject


# events ---------------------------------------------------------------------------------------------------------------


class _State(_Strict):
    response: Response
    sequence_number: int


class Created(_State, tag_field="type", tag="response.created"):
    pass


class Queued(_State, tag_field="type", tag="response.queued"):
    pass


class InProgress(_State, tag_field="type", tag="response.in_progress"):
    pass


class Completed(_State, tag_field="type", tag="response.completed"):
    pass


class Incomplete(_State, tag_field="type", tag="response.incomplete"):
    pass


class Failed(_State, tag_field="type", tag="response.failed"):
    pass


class _OfItem(_Strict):
    output_index: int
    item: Item
    sequence_number: int


class ItemAdded(_OfItem, tag_field="type", tag="response.output_item.added"):
    pass


class ItemDone(_OfItem, tag_field="type", tag="response.output_item.done"):
    pass


class _OfPart(_Strict):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | OutputRefusal
    sequence_number: int


class PartAdded(_OfPart, tag_field="type", tag="response.content_part.added"):
    pass


class PartDone(_OfPart, tag_field="type", tag="response.content_part.done"):
    pass


class TextDelta(_Strict, tag_field="type", tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[Json]
    sequence_number: int


class TextDone(_Strict, tag_field="type", tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[Json]
    sequence_number: int


class ArgumentsDelta(_Strict, tag_field="type", tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str
    sequence_number: int


class ArgumentsDone(_Strict, tag_field="type", tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str
    sequence_number: int


class SocketError(_Strict, tag_field="type", tag="error"):
    status: int
    error: SocketErrorObject


class QueueUpdated(_Strict, tag_field="type", tag="deskmate:queue.updated"):
    position: int
    eta_seconds: Number | None
    sequence_number: int


class Progressed(_Strict, tag_field="type", tag="deskmate:progress"):
    state: str
    eta_seconds: Number | None
    sequence_number: int


Event = (
    Created | Queued | InProgress | Completed | Incomplete | Failed | ItemAdded | ItemDone | PartAdded | PartDone
    | TextDelta | TextDone | ArgumentsDelta | ArgumentsDone | SocketError | QueueUpdated | Progressed
)  # fmt: skip

_MESSAGE = (
    r"output_item\.added content_part\.added (output_text\.delta )*output_text\.done content_part\.done"
    r" output_item\.done "
)
_CALL = r"output_item\.added (function_call_arguments\.delta )*function_call_arguments\.done output_item\.done "
_ORDER = re.compile(rf"created (queued )?in_progress ({_MESSAGE}|{_CALL})*(completed|incomplete|failed) ")
_OFFICIAL = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponsesServerEvent)[0])
}


# checks ---------------------------------------------------------------------------------------------------------------


def checked_response(body: bytes) -> Json:
    msgspec.json.decode(body, type=Response)
    return _official(OfficialResponse, body)


def checked_compaction(body: bytes) -> Json:
    """The SDK's own type of the output knows no user messages, though it says that they stand there; its items do."""
    msgspec.json.decode(body, type=CompactedBody)
    value: Json = json.loads(body)
    _official(ResponseUsage, json.dumps(value["usage"]).encode())
    for item in value["output"]:
        read = pydantic.TypeAdapter(ResponseItem).validate_json(json.dumps(item), strict=True)
        assert read.model_dump(mode="json", exclude_unset=True) == item
    return value


def checked_error(body: bytes) -> Json:
    msgspec.json.decode(body, type=ErrorBody)
    error: Json = json.loads(body)["error"]
    return error


def checked_event(data: bytes) -> Json:
    msgspec.json.decode(data, type=Event)
    event: Json = json.loads(data)
    return event if event["type"].startswith("deskmate:") else _official(_OFFICIAL[event["type"]], data)


def _official(kind: Any, body: bytes) -> Json:
    """As the SDK reads it: nothing missing, nothing brought into another type."""
    read = kind.model_validate_json(body, strict=True)
    value: Json = json.loads(body)
    assert read.model_dump(mode="json", exclude_unset=True) == value
    return value


def checked_stream(body: bytes) -> list[Json]:
    """The events of a body of server-sent events."""
    *frames, last, rest = body.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", ""), body[-200:]
    events = []
    for frame in frames:
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n")  # and no `id:`
        events.append(checked_event(data.removeprefix("data: ").encode()))
        assert name == f"event: {events[-1]['type']}"
    return checked_order(events)


def checked_order(events: list[Json]) -> list[Json]:
    """Numbers without gaps, the order of kinds, and that what the events tell piece by piece is what they end with."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    told = [event for event in events if not event["type"].startswith("deskmate:")]
    kinds = "".join(event["type"].removeprefix("response.") + " " for event in told)
    assert _ORDER.fullmatch(kinds), kinds
    states = [event["response"] for event in told if "response" in event]
    assert len({state["id"] for state in states}) == 1
    assert all(state["output"] == [] and state["usage"] is None for state in states[:-1])
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert states[-1]["output"] == done
    _check_items(told, done)
    return events


def _check_items(told: list[Json], done: list[Json]) -> None:
    of_items = [event for event in told if "output_index" in event]
    groups = itertools.groupby(of_items, key=lambda event: event["output_index"])
    for index, (item, (number, group)) in enumerate(zip(done, groups, strict=True)):
        events = list(group)
        assert number == index and events[0]["item"]["status"] == "in_progress" != item["status"]
        assert {event.get("item_id") or event["item"]["id"] for event in events} == {item["id"]}
        said = "".join(event.get("delta", "") for event in events)
        assert said == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        for event in events:
            assert said == event.get("text", event.get("arguments", said))
    assert all(item["status"] == "completed" for item in done[:-1])  # one that is incomplete is the last
