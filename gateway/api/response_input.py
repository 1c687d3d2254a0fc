"""What a Responses request says: checked field by field, refused by name; pure, no storage and no engine.

A field that is known but not honoured yet is refused unless it carries the value that changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from gateway.errors import BadRequest, NotFound, UnknownParameter, UnsupportedParameter
from gateway.prompt import text_of

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
    "top_k": (-1, 1 << 20),
    "seed": (-(1 << 63), (1 << 63) - 1),
}
# Known to the standard, not honoured yet: each with the values that ask for nothing.
_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "auto", "none"),
    "text": (None, {}, {"format": {"type": "text"}}),
    "reasoning": (None, {}, {"effort": None, "summary": None}),
    "include": (None, []),
    "prompt": (None,),
    "moderation": (None,),
    "max_tool_calls": (None,),
    "top_logprobs": (None, 0),
    "service_tier": (None, "auto", "default"),
    "prompt_cache_options": (None,),
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
    parallel_tool_calls: bool | None = None
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
        for entry in self.context_management or ():
            if entry.get("type") == "deskmate:window":
                return int(entry["rounds"])
        return None

    def sampling_extra(self) -> dict[str, Any]:
        return {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}


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
    _check_window(create)
    check_metadata(create.metadata)
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
    ):
        if isinstance(value, dict) and (unknown := sorted(set(value) - keys)):
            raise UnknownParameter(f"Unknown parameter: `{name}.{unknown[0]}`.", param=f"{name}.{unknown[0]}")
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


def _check_window(create: CreateResponse) -> None:
    for entry in create.context_management or ():
        if entry.get("type") != "deskmate:window":
            raise UnsupportedParameter(
                f"`context_management` of type `{entry.get('type')}` is not supported yet.", param="context_management"
            )
        rounds = entry.get("rounds")
        if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= 1000 or len(entry) != 2:
            raise BadRequest("`deskmate:window` has one field, `rounds`, from 0 to 1000.", param="context_management")


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    metadata = metadata or {}
    if len(metadata) > MOST_METADATA:
        raise BadRequest(f"`metadata` has {len(metadata)} entries; at most {MOST_METADATA}.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise BadRequest("Keys of `metadata` may have 64 characters, values 512.", param=f"metadata.{key[:64]}")


def parse_input(value: str | Sequence[Mapping[str, Any]] | None, param: str = "input") -> list[dict[str, Any]]:
    """Items as they are stored: messages, their text compact. Raises for what is no item or not supported yet."""
    if value is None or value == [] or value == "":
        raise BadRequest(f"`{param}` is empty: ask something.", param=param)
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return [_parse_item(item, f"{param}[{index}]") for index, item in enumerate(value)]


def _parse_item(item: Any, param: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise BadRequest("An item is an object.", param=param)
    kind = item.get("type", "message")
    if kind != "message":
        raise UnsupportedParameter(f"Items of type `{kind}` are not supported yet.", param=f"{param}.type")
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise BadRequest("`role` is one of user, assistant, system, developer.", param=f"{param}.role")
    unknown = set(item) - {"type", "role", "content", "id", "status", "phase"}
    if unknown:
        name = min(unknown)
        raise UnknownParameter(f"Unknown parameter: `{param}.{name}`.", param=f"{param}.{name}")
    parsed = {"type": "message", "role": role, "content": _parse_content(item.get("content"), f"{param}.content")}
    if role == "assistant" and item.get("phase") in ("commentary", "final_answer"):
        parsed["phase"] = item["phase"]
    return parsed


def _parse_content(content: Any, param: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("`content` is a string or a list of parts.", param=param)
    parts = [_parse_part(part, f"{param}[{index}]") for index, part in enumerate(content)]
    only_text = len(parts) == 1 and parts[0]["type"] in ("input_text", "output_text")
    return str(parts[0]["text"]) if only_text else parts


def _parse_part(part: Any, param: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    field = {"input_text": "text", "output_text": "text", "refusal": "refusal"}.get(str(kind))
    if field is None:
        raise UnsupportedParameter(f"Content of type `{kind}` is not supported yet.", param=f"{param}.type")
    if not isinstance(part.get(field), str):
        raise BadRequest(f"`{field}` is a string.", param=f"{param}.{field}")
    return {"type": kind, field: part[field]}


def question_of(items: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message: what a conversation is named after."""
    return next((text_of(item) for item in reversed(items) if item["role"] == "user"), "")


def check_model(asked: str | None, served: str | None, aliases: Sequence[str]) -> None:
    """Raises NotFound with OpenAI's code when another model than the served one is asked for."""
    if asked and served and asked != served and asked not in aliases:
        raise NotFound(
            f"The model `{asked}` is not served here; this is `{served}`.", code="model_not_found", param="model"
        )
