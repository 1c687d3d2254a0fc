"""What a Responses request says: checked field by field, refused by name; pure, no storage and no engine.

A field that is known but not honoured yet is refused unless it carries the value that changes nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec

from gateway.api.response_image import parse_image
from gateway.api.response_tools import Wishes, parse_wishes
from gateway.errors import BadRequest, NotFound, UnknownParameter, UnsupportedParameter
from gateway.prompt import Window, text_of

MOST_METADATA = 16
_SAMPLING = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop")
_LIMITS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_output_tokens": (16, 1 << 20),
    "max_tool_calls": (1, 1 << 20),
    "top_logprobs": (0, 20),
    "top_k": (-1, 1 << 20),
    "seed": (-(1 << 63), (1 << 63) - 1),
}
# Known to the standard, not honoured yet: each with the values that ask for nothing.
_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "prompt": (None,),
    "moderation": (None,),
    "prompt_cache_options": (None,),
}
LOGPROBS = "message.output_text.logprobs"
# What may be included. Only log probabilities are there ever: tools of others have no calls here.
_INCLUDED = frozenset({
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
    "reasoning.encrypted_content", LOGPROBS,
})  # fmt: skip
LEAST_THRESHOLD = 1000  # tokens
_WINDOW, _COMPACTION = "deskmate:window", "compaction"
# What may be done to a context: each with its number, from and to where it goes, and whether it may be left out.
_MANAGED: Mapping[str, tuple[str, int, int, bool]] = {
    _WINDOW: ("rounds", 0, 1000, False),
    _COMPACTION: ("compact_threshold", LEAST_THRESHOLD, 1 << 40, True),
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_REASONING: Mapping[str, tuple[str, ...]] = {
    "effort": _EFFORTS,
    "context": ("auto", "current_turn", "all_turns"),
    "summary": ("auto", "concise", "detailed"),  # none is made
    "generate_summary": ("auto", "concise", "detailed"),
}


class CreateResponse(msgspec.Struct, kw_only=True):
    """The body of POST /v1/responses as far as it is honoured; None is the standard's `null` and means the default."""

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    conversation: str | dict[str, Any] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_management: list[dict[str, Any]] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None  # without effect on a model that does not reason
    include: list[str] | None = None
    top_logprobs: int | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None  # flex can wait
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def conversation_id(self) -> str | None:
        if isinstance(self.conversation, dict):
            return str(self.conversation.get("id", ""))
        return self.conversation

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def window_rounds(self) -> int | None:
        """Rounds of `deskmate:window`; None: the whole context."""
        return self._management(_WINDOW).get("rounds")

    @property
    def compacts(self) -> bool:
        """A context that grows too long is to be made short."""
        return bool(self._management(_COMPACTION))

    def compact_threshold(self) -> int | None:
        return self._management(_COMPACTION).get("compact_threshold")

    def _management(self, kind: str) -> dict[str, Any]:
        return next((entry for entry in self.context_management or () if entry.get("type") == kind), {})

    @property
    def effort(self) -> str | None:
        return (self.reasoning or {}).get("effort")

    def window(self) -> Window:
        thoughts = (self.reasoning or {}).get("context") == "all_turns"
        return Window(self.window_rounds(), truncate=self.truncation == "auto", thoughts=thoughts)

    def wishes(self) -> Wishes:
        """Tools, the form of the text, how much to think. Raises BadRequest, naming the field."""
        return parse_wishes(
            self.tools,
            self.tool_choice,
            self.text,
            parallel=self.parallel_tool_calls is not False,
            most_calls=self.max_tool_calls,
            at_once=not self.stream,
            effort=self.effort,
        )

    def sampling_extra(self) -> dict[str, Any]:
        extra = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            extra |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return extra


_FIELDS = frozenset(CreateResponse.__struct_fields__)


def parse_create(body: Mapping[str, Any]) -> CreateResponse:
    """Check a request body. Raises BadRequest and its kin, naming the field."""
    for name, value in body.items():
        if name in _NOT_YET:
            if value not in _NOT_YET[name]:
                raise UnsupportedParameter(f"`{name}` is not supported yet; leave it out.", param=name)
        elif name not in _FIELDS:
            raise UnknownParameter(f"Unknown parameter: `{name}`.", param=name)
    known = {name: value for name, value in body.items() if name in _FIELDS}
    try:
        create = msgspec.convert(known, CreateResponse)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise BadRequest(f"{message}{' at ' + path if path else ''}.", param=path.strip("`$.") or None) from error
    _check_ranges(create)
    _check_combinations(create)
    _check_management(create.context_management or ())
    check_metadata(create.metadata)
    create.wishes()
    return create


def _check_ranges(create: CreateResponse) -> None:
    for name, (least, most) in _LIMITS.items():
        value = getattr(create, name)
        if value is not None and not least <= value <= most:
            raise BadRequest(f"`{name}` is {value}; it must be from {least} to {most}.", param=name)
    stops = [create.stop] if isinstance(create.stop, str) else create.stop or []
    if len(stops) > 16 or any(not stop for stop in stops):
        raise BadRequest("`stop` may hold up to 16 strings, none of them empty.", param="stop")
    for name in ("safety_identifier", "prompt_cache_key"):
        if len(getattr(create, name) or "") > 64:
            raise BadRequest(f"`{name}` may have up to 64 characters.", param=name)


def _check_combinations(create: CreateResponse) -> None:
    if isinstance(create.conversation, dict) and not isinstance(create.conversation.get("id"), str):
        raise BadRequest("`conversation` is an id or an object with an `id`.", param="conversation")
    for name, value, keys in (
        ("conversation", create.conversation, {"id"}),
        ("stream_options", create.stream_options, {"include_obfuscation"}),  # true asks for what may be left out
        ("reasoning", create.reasoning, _REASONING.keys()),
    ):
        if isinstance(value, dict) and (unknown := sorted(set(value) - keys)):
            raise UnknownParameter(f"Unknown parameter: `{name}.{unknown[0]}`.", param=f"{name}.{unknown[0]}")
    for name, value in (create.reasoning or {}).items():
        if value is not None and value not in _REASONING[name]:
            raise BadRequest(f"`{name}` is one of {', '.join(_REASONING[name])}.", param=f"reasoning.{name}")
    for at, name in enumerate(create.include or ()):
        if name not in _INCLUDED:
            raise UnsupportedParameter(f"`{name[:64]}` cannot be included.", param=f"include[{at}]")
    if create.conversation is not None and create.previous_response_id is not None:
        raise BadRequest(
            "`previous_response_id` and `conversation` exclude each other; to go on from an earlier answer, create a "
            'conversation with metadata {"deskmate:branch_of": "resp_…"}.',
            param="previous_response_id",
        )
    if not create.is_stored and create.background:
        raise BadRequest("`background` needs `store`: an answer nobody listens to must be kept.", param="background")
    if not create.is_stored and create.conversation is not None:
        raise BadRequest("`conversation` needs `store`: a conversation keeps what is said in it.", param="store")


def _check_management(entries: Sequence[Mapping[str, Any]]) -> None:
    kinds = [str(entry.get("type")) for entry in entries]
    for at, entry in enumerate(entries):
        param = f"context_management[{at}]"
        if kinds[at] not in _MANAGED:
            raise UnsupportedParameter(f"`{kinds[at][:40]}` is none of {', '.join(_MANAGED)}.", param=f"{param}.type")
        if kinds[at] in kinds[:at]:
            raise BadRequest(f"There are two entries of type `{kinds[at]}`.", param=param)
        name, least, most, optional = _MANAGED[kinds[at]]
        _check_fields(entry, {"type", name}, param)
        if (number := entry.get(name)) is None and optional:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise BadRequest(f"`{name}` is a whole number from {least} to {most}.", param=f"{param}.{name}")


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    metadata = metadata or {}
    if len(metadata) > MOST_METADATA:
        raise BadRequest(f"`metadata` has {len(metadata)} entries; at most {MOST_METADATA}.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise BadRequest("Keys of `metadata` may have 64 characters, values 512.", param=f"metadata.{key[:64]}")


def parse_input(
    value: str | Sequence[Mapping[str, Any]] | None, param: str = "input", *, references: bool = False
) -> list[dict[str, Any]]:
    """Items as they are stored: compact. Raises for what is no item or not supported yet.

    With `references` an item may be `{"type": "item_reference", "id": …}` or a sealed `compaction`; its caller puts the
    item in its place, or opens it.
    """
    if value is None or value == [] or value == "":
        raise BadRequest(f"`{param}` is empty: ask something.", param=param)
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return [_parse_item(item, f"{param}[{index}]", references) for index, item in enumerate(value)]


def _parse_item(item: Any, param: str, references: bool) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise BadRequest("An item is an object.", param=param)
    match item.get("type") or ("item_reference" if set(item) == {"id"} else "message"):
        case "message":
            return _parse_message(item, param)
        case "function_call":
            return _parse_call(item, param)
        case "function_call_output":
            return _parse_output(item, param)
        case "reasoning":
            return _parse_thought(item, param)
        case "compaction" if references:
            _check_fields(item, {"type", "id", "encrypted_content", "created_by"}, param)
            return {"type": "compaction", "encrypted_content": _string(item, "encrypted_content", param)}
        case "item_reference" if references:
            _check_fields(item, {"type", "id"}, param)
            return {"type": "item_reference", "id": _string(item, "id", param)}
        case kind:
            raise UnsupportedParameter(
                f"Items of type `{str(kind)[:40]}` are not supported here.", param=f"{param}.type"
            )


def _parse_message(item: Mapping[str, Any], param: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise BadRequest("`role` is one of user, assistant, system, developer.", param=f"{param}.role")
    _check_fields(item, {"type", "role", "content", "id", "status", "phase"}, param)
    parsed = {"type": "message", "role": role, "content": _parse_content(item.get("content"), f"{param}.content")}
    if role == "assistant" and item.get("phase") in ("commentary", "final_answer"):
        parsed["phase"] = item["phase"]
    return parsed


def _parse_call(item: Mapping[str, Any], param: str) -> dict[str, Any]:
    _check_fields(item, {"type", "id", "status", "call_id", "name", "arguments"}, param)
    strings = {name: _string(item, name, param) for name in ("call_id", "name")}
    if not isinstance(item.get("arguments"), str):
        raise BadRequest("`arguments` is a string: JSON.", param=f"{param}.arguments")
    return {"type": "function_call", **strings, "arguments": item["arguments"]}


def _parse_output(item: Mapping[str, Any], param: str) -> dict[str, Any]:
    _check_fields(item, {"type", "id", "status", "call_id", "output"}, param)
    output = _parse_content(item.get("output"), f"{param}.output")
    return {"type": "function_call_output", "call_id": _string(item, "call_id", param), "output": output}


def _parse_thought(item: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The model reads it again, because its caller says so; not a summary, which is none of its words."""
    _check_fields(item, {"type", "id", "status", "summary", "content"}, param)
    texts, content = [], item.get("content") or []
    if not isinstance(content, list):
        raise BadRequest("`content` is a list of parts.", param=f"{param}.content")
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "reasoning_text" or not isinstance(part.get("text"), str):
            raise BadRequest("Thoughts are parts of type `reasoning_text`.", param=f"{param}.content[{at}]")
        texts.append(part["text"])
    return {"type": "reasoning", "text": "".join(texts), "status": "completed", "given": True}


def _check_fields(item: Mapping[str, Any], known: Collection[str], param: str) -> None:
    """What clients send back of ours, or add as null, asks for nothing."""
    if unknown := sorted(str(name) for name, given in item.items() if name not in known and given is not None):
        raise UnknownParameter(f"Unknown parameter: `{param}.{unknown[0]}`.", param=f"{param}.{unknown[0]}")


def _string(item: Mapping[str, Any], name: str, param: str) -> str:
    if not isinstance(value := item.get(name), str) or not value:
        raise BadRequest(f"`{name}` is a string that is not empty.", param=f"{param}.{name}")
    return value


def _parse_content(content: Any, param: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"`{param.rpartition('.')[2]}` is a string or a list of parts.", param=param)
    parts = [_parse_part(part, f"{param}[{index}]") for index, part in enumerate(content)]
    only_text = len(parts) == 1 and parts[0]["type"] in ("input_text", "output_text")
    return str(parts[0]["text"]) if only_text else parts


def _parse_part(part: Any, param: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_image":
        return parse_image(part, param)
    field = {"input_text": "text", "output_text": "text", "refusal": "refusal"}.get(str(kind))
    if field is None:
        raise UnsupportedParameter(f"Content of type `{kind}` is not supported yet.", param=f"{param}.type")
    if not isinstance(part.get(field), str):
        raise BadRequest(f"`{field}` is a string.", param=f"{param}.{field}")
    return {"type": kind, field: part[field]}


def question_of(items: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message: what a conversation is named after."""
    return next((text_of(item) for item in reversed(items) if item.get("role") == "user"), "")


def check_model(asked: str | None, served: str | None, aliases: Sequence[str]) -> None:
    """Raises NotFound with OpenAI's code when another model than the served one is asked for."""
    if asked and served and asked != served and asked not in aliases:
        raise NotFound(
            f"The model `{asked}` is not served here; this is `{served}`.", code="model_not_found", param="model"
        )
