"""What a Responses request says of tools and of the form of its text: checked, brought into vLLM's shapes; pure."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.engine import ModelFacts
from gateway.errors import BadRequest, UnknownParameter, UnsupportedParameter
from gateway.events import Form

Json = dict[str, Any]

MOST_TOOLS = 128
MOST_SCHEMA_BYTES = 65_536  # what an engine makes a grammar of in moments
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")
_TOOL = {"type", "name", "description", "parameters", "strict"}
_FORMAT = {"type", "name", "description", "schema", "strict"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the engine is asked for (`form`), and how the response echoes it."""

    form: Form
    tools: list[Json]
    choice: str | Json
    format: Json | None  # None: text


def parse_wishes(
    tools: Sequence[Json] | None,
    choice: str | Json | None,
    text: Json | None,
    *,
    parallel: bool,
    most_calls: int | None,
    at_once: bool,
    effort: str | None = None,
) -> Wishes:
    """Raises BadRequest and its kin, naming the field."""
    shown = _tools(tools or ())
    choice = "auto" if choice is None else choice
    allowed, mode = _choice(choice, [tool["name"] for tool in shown])
    format = _format(text or {})
    offered = tuple(_for_engine(tool) for tool in shown if tool["name"] in allowed)
    form = Form(effort=effort)
    if offered or format:
        form = Form(offered, mode, parallel, most_calls, _response_format(format), at_once, effort)
    return Wishes(form, shown, choice, format)


def check_parser(form: Form, model: ModelFacts | None) -> None:
    """Raises UnsupportedParameter when nobody would understand the calls of the served model."""
    if form.tools and model is not None and model.tool_parser is None:
        raise UnsupportedParameter(
            f"`{model.id}` is served without a tool parser, so its calls would not be understood: leave `tools` out. "
            "The parser is chosen by the model's chat template; the setting DESKMATE_TOOL_PARSER names another one.",
            param="tools",
        )


# tools ----------------------------------------------------------------------------------------------------------------


def _tools(tools: Sequence[Any]) -> list[Json]:
    if len(tools) > MOST_TOOLS:
        raise BadRequest(f"`tools` has {len(tools)} entries; the limit is {MOST_TOOLS}.", param="tools")
    shown = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    names = [tool["name"] for tool in shown]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise BadRequest(f"`tools` has two functions named `{twice}`.", param="tools")
    return shown


def _tool(tool: Json, param: str) -> Json:
    """As the response shows it: all five fields, null where nothing was given."""
    if (kind := tool.get("type")) != "function":
        raise UnsupportedParameter(
            f"Tools of type `{str(kind)[:40]}` are not offered here; define a `function` and answer its calls.",
            param=f"{param}.type",
        )
    _only(tool, _TOOL, param)
    _check_name(tool, param)
    for field, kinds, what in (
        ("description", str, "a string"),
        ("parameters", dict, "an object: a JSON schema"),
        ("strict", bool, "true or false"),
    ):
        if tool.get(field) is not None and not isinstance(tool[field], kinds):
            raise BadRequest(f"`{field}` is {what}.", param=f"{param}.{field}")
    _check_size(tool.get("parameters"), f"{param}.parameters")
    optional = ("description", "parameters", "strict")
    return {"type": "function", "name": tool["name"], **{field: tool.get(field) for field in optional}}


def _for_engine(tool: Json) -> Json:
    """As a chat takes it."""
    function = {field: value for field, value in tool.items() if field != "type" and value is not None}
    return {"type": "function", "function": function}


def _choice(choice: str | Json, names: Sequence[str]) -> tuple[Collection[str], str | Json]:
    """Which tools the engine is given, and what it is asked to do with them."""
    if isinstance(choice, str):
        if choice not in _MODES:
            raise BadRequest(f"`tool_choice` is one of {', '.join(_MODES)}, or an object.", param="tool_choice")
        if choice == "required":
            _check_some(names)
        return ((), "auto") if choice == "none" else (names, choice)
    match choice.get("type"):
        case "function":
            _only(choice, {"type", "name"}, "tool_choice")
            name = _one_of(choice.get("name"), names, "tool_choice.name")
            return names, {"type": "function", "function": {"name": name}}
        case "allowed_tools":
            return _allowed(choice, names)
    kind = str(choice.get("type"))[:40]
    raise UnsupportedParameter(f"`tool_choice` of type `{kind}` is not offered here.", param="tool_choice.type")


def _allowed(choice: Json, names: Sequence[str]) -> tuple[Collection[str], str]:
    _only(choice, {"type", "mode", "tools"}, "tool_choice")
    mode, tools = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise BadRequest("`mode` of allowed tools is auto or required.", param="tool_choice.mode")
    if not isinstance(tools, list) or not tools:
        raise BadRequest("`tools` of allowed tools is a list with at least one entry.", param="tool_choice.tools")
    allowed = []
    for at, tool in enumerate(tools):
        param = f"tool_choice.tools[{at}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise UnsupportedParameter("Only functions are offered here.", param=f"{param}.type")
        allowed.append(_one_of(tool.get("name"), names, f"{param}.name"))
    return allowed, mode


def _check_some(names: Sequence[str]) -> None:
    if not names:
        raise BadRequest("`tool_choice` asks for a call, but `tools` is empty.", param="tool_choice")


def _one_of(name: Any, names: Sequence[str], param: str) -> str:
    if name not in names:
        raise BadRequest(f"`{str(name)[:64]}` is none of the functions in `tools`.", param=param)
    return str(name)


# the form of the text -------------------------------------------------------------------------------------------------


def _format(text: Json) -> Json | None:
    _only(text, {"format", "verbosity"}, "text")
    if text.get("verbosity") not in (None, "medium"):
        raise UnsupportedParameter("`text.verbosity` is not supported; say it in words.", param="text.verbosity")
    format = text.get("format")
    if format is None:
        return None
    if not isinstance(format, dict):
        raise BadRequest("`text.format` is an object.", param="text.format")
    match format.get("type"):
        case "text":
            _only(format, {"type"}, "text.format")
            return None
        case "json_object":
            _only(format, {"type"}, "text.format")
            return {"type": "json_object"}
        case "json_schema":
            return _schema(format)
    raise BadRequest("`text.format.type` is text, json_object or json_schema.", param="text.format.type")


def _schema(format: Json) -> Json:
    _only(format, _FORMAT, "text.format")
    _check_name(format, "text.format")
    for field, kinds, what in (("schema", dict, "an object"), ("strict", bool, "true or false")):
        if not isinstance(format.get(field), kinds) and (field == "schema" or format.get(field) is not None):
            raise BadRequest(f"`{field}` is {what}.", param=f"text.format.{field}")
    if not isinstance(format.get("description") or "", str):
        raise BadRequest("`description` is a string.", param="text.format.description")
    _check_size(format["schema"], "text.format.schema")
    return {
        "type": "json_schema",
        "name": format["name"],
        "schema": format["schema"],
        "description": format.get("description"),
        "strict": format.get("strict"),
    }


def _response_format(format: Json | None) -> Json | None:
    """As a chat takes it."""
    if format is None or format["type"] != "json_schema":
        return format
    schema = {field: value for field, value in format.items() if field != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}


# small checks ---------------------------------------------------------------------------------------------------------


def _only(value: Mapping[str, Any], fields: Collection[str], param: str) -> None:
    """What later clients send as null asks for nothing."""
    for name in sorted(name for name, given in value.items() if name not in fields and given is not None):
        raise UnknownParameter(f"Unknown parameter: `{param}.{name[:64]}`.", param=f"{param}.{name[:64]}")


def _check_name(value: Json, param: str) -> None:
    name = value.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRequest("`name` has 1 to 64 letters, digits, `_` or `-`.", param=f"{param}.name")


def _check_size(schema: Any, param: str) -> None:
    if schema is not None and (size := len(msgspec.json.encode(schema))) > MOST_SCHEMA_BYTES:
        raise BadRequest(f"The schema has {size:,} bytes; the limit is {MOST_SCHEMA_BYTES:,}.", param=param)
