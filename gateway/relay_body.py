"""Pure: what a caller of a relay route asked for becomes what the worker is asked for. Knows no HTTP and no engine.

Every field is (a) honoured and passed on, (b) dangerous and refused by name, or (c) dropped and named, so that what
tomorrow's clients send never reaches the worker unread. The same holds inside messages and tools. Every text that is
to be read by the model has its control tokens broken up.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.engine import ModelFacts
from gateway.errors import BadRequest, NotFound, UnsupportedParameter
from gateway.prompt import IMAGE_NOTE, PICTURE_TOKENS, harmless, harmless_json, neutralise

Json = dict[str, Any]

BYTES_PER_TOKEN = 4  # a rough count for the queue; the engine counts exactly
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 300
MAX_TOP_LOGPROBS = 20

_SAMPLING = frozenset({
    "frequency_penalty", "ignore_eos", "logit_bias", "logprobs", "max_tokens", "min_p", "min_tokens", "model", "n",
    "presence_penalty", "repetition_penalty", "response_format", "seed", "stop", "stream", "stream_options",
    "temperature", "top_k", "top_p",
})  # fmt: skip
_CHAT = _SAMPLING | {
    "chat_template_kwargs", "max_completion_tokens", "messages", "parallel_tool_calls", "reasoning_effort",
    "tool_choice", "tools", "top_logprobs",
}  # fmt: skip
_COMPLETION = _SAMPLING | {"echo", "prompt"}
_MESSAGES = frozenset({
    "max_tokens", "messages", "model", "output_config", "stop_sequences", "stream", "system", "temperature",
    "thinking", "tool_choice", "tools", "top_k", "top_p",
})  # fmt: skip
_DANGEROUS = frozenset({
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "cache_salt", "chat_template",
    "chat_template_kwargs", "continue_final_message", "documents", "ec_transfer_params", "kv_transfer_params",
    "media_io_kwargs", "mm_processor_kwargs", "priority", "prompt_embeds", "prompt_logprobs", "request_id",
    "session_id", "skip_special_tokens", "suffix", "use_beam_search", "vllm_xargs",
})  # fmt: skip
_TEMPLATE_SWITCHES = frozenset({"enable_thinking", "thinking"})
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_PART_FIELDS = {
    "text": {"type", "text"},
    "refusal": {"type", "refusal"},
    "image_url": {"type", "image_url"},
}
_BLOCK_FIELDS = {
    "text": {"type", "text"},
    "image": {"type", "source"},
    "tool_use": {"type", "id", "name", "input"},
    "tool_result": {"type", "tool_use_id", "content", "is_error"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}
_CALL_FIELDS = frozenset({"id", "type", "function"})
_TOOL_FIELDS = frozenset({"type", "function"})
_ANTHROPIC_TOOL_FIELDS = frozenset({"name", "description", "input_schema", "strict"})


@dataclass(slots=True)
class RelayBody:
    """What the worker is asked for. `fields` may still be given a smaller `max_tokens` before it is encoded."""

    fields: Json
    ignored: list[str] = field(default_factory=list)
    streamed: bool = False
    keeps_usage: bool = True  # the caller wants the usage event of a stream
    prompt_tokens: int = 0  # roughly
    max_tokens: int = 0
    max_tokens_given: bool = True
    form: Json = field(default_factory=dict)  # what the answer must be beside text, as a chat asks for it
    schema: str = "tools"  # the field that asks for it
    flex: bool = False  # it can wait


Rewrite = Callable[[Json, ModelFacts, Collection[str], str], RelayBody]


def chat(body: Json, model: ModelFacts, aliases: Collection[str], salt: str) -> RelayBody:
    """/v1/chat/completions."""
    made = _begin(body, _CHAT, model, aliases, salt)
    made.fields["messages"] = [
        _chat_message(message, f"messages[{index}]", model, made.ignored)
        for index, message in enumerate(_list(body, "messages"))
    ]
    _check_template_switches(body)
    _chat_tools(made, model)
    _sampling_defaults(made, model)
    _cap(body.get("top_logprobs"), MAX_TOP_LOGPROBS, "top_logprobs")
    _form(made)
    return _finish(made, model, ("messages", "tools"))


def completion(body: Json, model: ModelFacts, aliases: Collection[str], salt: str) -> RelayBody:
    """/v1/completions."""
    made = _begin(body, _COMPLETION, model, aliases, salt)
    made.fields["prompt"] = neutralise(_one_prompt(body.get("prompt")), model.added_tokens)
    _sampling_defaults(made, model)
    _cap(body.get("logprobs"), MAX_TOP_LOGPROBS, "logprobs")
    _form(made)
    return _finish(made, model, ("prompt",))


def messages(body: Json, model: ModelFacts, aliases: Collection[str], salt: str) -> RelayBody:
    """/v1/messages."""
    made = _begin(body, _MESSAGES, model, aliases, salt)
    _anthropic_prompt(made, body, model)
    _fill(made.fields, "temperature", model.defaults.temperature)
    _fill(made.fields, "top_p", model.defaults.top_p)
    _check_strings(body.get("stop_sequences"), "stop_sequences")
    _anthropic_form(made)
    return _finish(made, model, ("system", "messages", "tools"))


def count_tokens(body: Json, model: ModelFacts, aliases: Collection[str], salt: str) -> RelayBody:
    """/v1/messages/count_tokens: no answer, so no sampling and no salt."""
    made = _begin(body, _MESSAGES - {"stream", "max_tokens"}, model, aliases, salt)
    _anthropic_prompt(made, body, model)
    kept = {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"}
    made.fields = {name: value for name, value in made.fields.items() if name in kept}
    return made


# steps ----------------------------------------------------------------------------------------------------------------


def _begin(body: Json, honoured: Collection[str], model: ModelFacts, aliases: Collection[str], salt: str) -> RelayBody:
    """The honoured fields that are set, the served model's id, the person's salt; the rest refused or named."""
    made = RelayBody({})
    for name, value in body.items():
        if value is None:
            continue
        if name in honoured:
            made.fields[name] = value
        elif name == "service_tier" and value == "flex":
            made.flex = True  # for our line; the engine has none
        elif name in _DANGEROUS:
            raise UnsupportedParameter(f"'{name}' may not be set by callers of this server.", param=name)
        else:
            made.ignored.append(name)
    made.fields["model"] = _model_id(body.get("model"), model, aliases)
    made.fields["cache_salt"] = salt
    made.streamed = _flag(body, "stream")
    return made


def _model_id(asked: Any, model: ModelFacts, aliases: Collection[str]) -> str:
    if asked is None:
        raise BadRequest(f"'model' is missing; this server has '{model.id}'.", code="missing_parameter", param="model")
    if not isinstance(asked, str):
        raise BadRequest("'model' must be a string.", param="model")
    if asked != model.id and asked not in aliases:
        message = f"There is no model '{asked[:80]}' here; this server has '{model.id}'."
        raise NotFound(message, code="model_not_found", param="model")
    return model.id


def _sampling_defaults(made: RelayBody, model: ModelFacts) -> None:
    """Fill in what is left out, and the caps of OpenAI's sampling fields."""
    fields = made.fields
    for name in ("temperature", "top_p", "repetition_penalty"):
        _fill(fields, name, getattr(model.defaults, name))
    if fields.get("n", 1) != 1:
        raise UnsupportedParameter("'n' may be 1 only: ask again for another answer.", param="n")
    if isinstance(bias := fields.get("logit_bias"), dict) and len(bias) > MAX_LOGIT_BIAS:
        raise BadRequest(f"'logit_bias' has {len(bias)} entries; the limit is {MAX_LOGIT_BIAS}.", param="logit_bias")
    _check_strings(fields.get("stop"), "stop")
    _usage_of_the_stream(made)


def _usage_of_the_stream(made: RelayBody) -> None:
    """The gateway always wants the usage event of a stream; whether the caller does is remembered."""
    options = made.fields.pop("stream_options", None) or {}
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object.", param="stream_options")
    if options and not made.streamed:
        raise BadRequest("'stream_options' may be set with 'stream': true only.", param="stream_options")
    made.ignored += [f"stream_options.{name}" for name in options if name != "include_usage"]
    made.keeps_usage = options.get("include_usage") is True
    if made.streamed:
        made.fields["stream_options"] = {"include_usage": True}


def _form(made: RelayBody) -> None:
    fields = made.fields
    made.form = {
        name: fields[name]
        for name in ("tools", "tool_choice", "parallel_tool_calls", "response_format")
        if name in fields
    }
    made.schema = "response_format" if "response_format" in made.form else "tools"


def _anthropic_form(made: RelayBody) -> None:
    config = made.fields.get("output_config")
    format = config.get("format") if isinstance(config, dict) else None
    if isinstance(format, dict) and format.get("type") == "json_schema":
        schema = {"name": "output", "schema": format.get("schema")}
        made.form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        made.schema = "output_config.format.schema"


def _finish(made: RelayBody, model: ModelFacts, read: Sequence[str]) -> RelayBody:
    """The size: the answer's limit, and roughly the prompt's (`read`: the fields the model reads)."""
    given = made.fields.pop("max_completion_tokens", None) or made.fields.get("max_tokens")
    if given is not None and (type(given) is not int or given < 1):
        raise BadRequest("'max_tokens' must be a whole number of at least 1.", param="max_tokens")
    made.max_tokens_given = given is not None
    made.max_tokens = made.fields["max_tokens"] = given or min(model.defaults.max_tokens, model.context_tokens // 2)
    made.prompt_tokens = sum(_bytes(made.fields.get(name)) for name in read) // BYTES_PER_TOKEN + 1
    return made


def _bytes(value: Any) -> int:
    """UTF-8 bytes of all strings inside; a picture counts as what it is read as, not as what it is sent as."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict) and value.get("type") in ("image_url", "image"):
        return PICTURE_TOKENS * BYTES_PER_TOKEN
    if isinstance(value, dict):
        return sum(len(key) + _bytes(item) for key, item in value.items())
    return sum(map(_bytes, value)) if isinstance(value, list) else 0


# texts ----------------------------------------------------------------------------------------------------------------


def _chat_message(message: Any, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    kept = _kept(message, _MESSAGE_FIELDS, path, "messages[]", ignored)
    role = kept.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(f"'role' must be one of {', '.join(_ROLES)}.", param=f"{path}.role")
    if isinstance(content := kept.get("content"), list):
        kept["content"] = [_part(part, f"{path}.content[{at}]", model, ignored) for at, part in enumerate(content)]
    elif content is not None and not isinstance(content, str):
        raise BadRequest("'content' must be a string or a list of parts.", param=f"{path}.content")
    if (calls := kept.get("tool_calls")) is not None:
        if not isinstance(calls, list):
            raise BadRequest("'tool_calls' must be a list.", param=f"{path}.tool_calls")
        kept["tool_calls"] = [_call(call, f"{path}.tool_calls[{at}]", model, ignored) for at, call in enumerate(calls)]
    return {**harmless(kept, model.added_tokens), "role": _ROLES[role]}


def _call(call: Any, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    """Templates print a call's arguments decoded: what stands in their escapes is broken up there."""
    kept = _kept(call, _CALL_FIELDS, path, "messages[].tool_calls[]", ignored)
    function = kept.get("function")
    if isinstance(function, dict) and isinstance(arguments := function.get("arguments"), str):
        kept["function"] = {**function, "arguments": harmless_json(arguments, model.added_tokens)}
    return kept


def _part(part: Any, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    fields = _PART_FIELDS.get(_type_of(part, path))
    if fields is None:
        message = f"Parts of the type '{part['type'][:40]}' are not supported."
        raise UnsupportedParameter(message, param=f"{path}.type")
    kept = _kept(part, fields, path, "messages[].content[]", ignored)
    if kept["type"] == "image_url":
        image = kept.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return _image(kept, url if isinstance(url, str) else "", path, model, ignored)
    return kept


def _image(part: Json, url: str, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    """An image that comes with the request; to a model that reads text only, a note in its place."""
    if not url.startswith("data:image/"):
        message = "An image must be sent as a data: URL; nothing is fetched from elsewhere."
        raise UnsupportedParameter(message, param=path)
    if model.vision:
        return part
    name = f"messages[].content[].{part['type']}"
    ignored += [] if name in ignored else [name]
    return {"type": "text", "text": f"\n{IMAGE_NOTE}\n"}


def _anthropic_prompt(made: RelayBody, body: Json, model: ModelFacts) -> None:
    """`system`, `messages` and `tools` in Anthropic's shapes."""
    fields = made.fields
    if isinstance(system := fields.get("system"), list):
        fields["system"] = [_block(part, f"system[{at}]", model, made.ignored) for at, part in enumerate(system)]
    fields["messages"] = [
        _anthropic_message(message, f"messages[{at}]", model, made.ignored)
        for at, message in enumerate(_list(body, "messages"))
    ]
    if "system" in fields:
        fields["system"] = harmless(fields["system"], model.added_tokens)
    _anthropic_tools(made, model)


def _anthropic_message(message: Any, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    kept = _kept(message, {"role", "content"}, path, "messages[]", ignored)
    if kept.get("role") not in ("user", "assistant", "system"):
        raise BadRequest("'role' must be user or assistant.", param=f"{path}.role")
    content = _blocks(kept.get("content"), path, model, ignored)
    return {"role": kept["role"], "content": harmless(content, model.added_tokens)}


def _blocks(content: Any, path: str, model: ModelFacts, ignored: list[str]) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("'content' must be a string or a list of blocks.", param=f"{path}.content")
    return [_block(block, f"{path}.content[{at}]", model, ignored) for at, block in enumerate(content)]


def _block(block: Any, path: str, model: ModelFacts, ignored: list[str]) -> Json:
    fields = _BLOCK_FIELDS.get(_type_of(block, path))
    if fields is None:
        message = f"Blocks of the type '{block['type'][:40]}' are not supported."
        raise UnsupportedParameter(message, param=f"{path}.type")
    kept = _kept(block, fields, path, "content[]", ignored)
    if kept["type"] == "image":
        source = kept.get("source")
        inline = isinstance(source, dict) and source.get("type") == "base64"
        return _image(kept, "data:image/" if inline else "", path, model, ignored)
    if kept["type"] == "tool_result" and kept.get("content") is not None:
        kept["content"] = _blocks(kept["content"], path, model, ignored)
    return kept


def _type_of(part: Any, path: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise BadRequest("This must be an object with a 'type'.", param=path)
    return str(part["type"])


def _kept(value: Any, fields: Collection[str], path: str, shown: str, ignored: list[str]) -> Json:
    """The known fields of an object inside the body; the others are named, once each."""
    if not isinstance(value, dict):
        raise BadRequest("This must be an object.", param=path)
    ignored += [
        name
        for key, item in value.items()
        if key not in fields and item is not None and (name := f"{shown}.{key}") not in ignored
    ]
    return {key: item for key, item in value.items() if key in fields and item is not None}


# tools ----------------------------------------------------------------------------------------------------------------


def _chat_tools(made: RelayBody, model: ModelFacts) -> None:
    """Tools go to a model that can call them; for one that cannot they are dropped, unless a call is demanded."""
    fields, choice = made.fields, made.fields.get("tool_choice")
    if not fields.get("tools"):
        _drop(made, ("tools", "tool_choice", "parallel_tool_calls"), name_them=bool(choice))
        return
    if model.tool_parser is None:
        if choice not in (None, "auto", "none"):
            raise UnsupportedParameter(f"'{model.id}' cannot be made to call a tool.", param="tool_choice")
        _drop(made, ("tools", "tool_choice", "parallel_tool_calls"))
        return
    fields["tools"] = [
        harmless(_kept(tool, _TOOL_FIELDS, f"tools[{at}]", "tools[]", made.ignored), model.added_tokens)
        for at, tool in enumerate(_list(fields, "tools"))
    ]


def _anthropic_tools(made: RelayBody, model: ModelFacts) -> None:
    fields, choice = made.fields, made.fields.get("tool_choice")
    if not fields.get("tools"):
        _drop(made, ("tools", "tool_choice"), name_them=bool(choice))
        return
    if model.tool_parser is None:
        kind = choice.get("type") if isinstance(choice, dict) else choice
        if kind not in (None, "auto", "none"):
            raise UnsupportedParameter(f"'{model.id}' cannot be made to call a tool.", param="tool_choice")
        _drop(made, ("tools", "tool_choice"))
        return
    fields["tools"] = [
        harmless(_kept(tool, _ANTHROPIC_TOOL_FIELDS, f"tools[{at}]", "tools[]", made.ignored), model.added_tokens)
        for at, tool in enumerate(_list(fields, "tools"))
    ]


def _drop(made: RelayBody, names: Sequence[str], *, name_them: bool = True) -> None:
    for name in names:
        if made.fields.pop(name, None) is not None and name_them:
            made.ignored.append(name)


# small checks ---------------------------------------------------------------------------------------------------------


def _one_prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if prompt is None:
        raise BadRequest("'prompt' is missing.", code="missing_parameter", param="prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
        raise UnsupportedParameter(f"One prompt per request, not {len(prompt)}.", param="prompt")
    raise UnsupportedParameter("'prompt' must be text; token ids are not accepted.", param="prompt")


def _check_template_switches(body: Json) -> None:
    switches = body.get("chat_template_kwargs") or {}
    known = isinstance(switches, dict) and all(
        name in _TEMPLATE_SWITCHES and isinstance(value, bool) for name, value in switches.items()
    )
    if not known:
        allowed = ", ".join(sorted(_TEMPLATE_SWITCHES))
        raise UnsupportedParameter(
            f"'chat_template_kwargs' may hold {allowed} (true or false) only.", param="chat_template_kwargs"
        )
    effort = body.get("reasoning_effort")
    if effort is not None and not (isinstance(effort, str) and effort in _EFFORTS):
        raise BadRequest(f"'reasoning_effort' must be one of {', '.join(sorted(_EFFORTS))}.", param="reasoning_effort")


def _check_strings(value: Any, name: str) -> None:
    strings = [value] if isinstance(value, str) else value
    if strings is None:
        return
    if not isinstance(strings, list) or not all(isinstance(text, str) and text for text in strings):
        raise BadRequest(f"'{name}' must be a text or a list of texts.", param=name)
    if len(strings) > MAX_STOP_STRINGS:
        raise BadRequest(f"'{name}' has {len(strings)} entries; the limit is {MAX_STOP_STRINGS}.", param=name)


def _cap(value: Any, limit: int, name: str) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:  # to the engine -1 is its whole vocabulary
        raise BadRequest(f"'{name}' must be a whole number from 0 to {limit}.", param=name)
    if value > limit:
        raise BadRequest(f"'{name}' is {value}; the limit is {limit}.", param=name)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false.", param=name)
    return bool(value)


def _fill(fields: Json, name: str, value: Any) -> None:
    if fields.get(name) is None:
        fields[name] = value


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise BadRequest(f"'{name}' must be a list with at least one entry.", param=name)
    return value
