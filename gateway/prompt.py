"""Pure: from items to the messages a model reads - window, budget, control tokens. Knows no engine and no storage.

A *round* is a user message with everything up to the next one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

WORD_JOINER = "\u2060"  # invisible, and no tokenizer's control token contains it
TEMPLATE_TOKENS = 32  # that a chat template may put around a message
TOOLS_TEMPLATE_TOKENS = 512  # that it may say about tools before it lists them
JSON_GROWTH = 6  # of a byte that a template escapes
BYTES_PER_TOKEN = 3  # a cautious estimate while no engine can count: English has about 4, Chinese about 3
PICTURE_TOKENS = 1024  # an estimate while no engine can count: they range from a hundred to some thousands
IMAGE_NOTE = "[An image was attached here; this model cannot see it.]"
SUMMARY_NOTE = "Summary of the conversation so far:\n"
_UNKNOWN_TOKENIZER = (
    r"<\|[^|<>\s]{1,64}\|>|<\uff5c[^<>\s]{1,64}\uff5c>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|unk|pad)>"
    r"|<(?:start|end)_of_turn>|</?(?:think|tool_call|tool_response)>"
)


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str  # JSON


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: Function
    type: str = "function"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message as vLLM takes it; text, or parts where pictures are among it, and calls of tools."""

    role: str
    content: str | list[dict[str, Any]]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""  # the thoughts before it


@dataclass(frozen=True, slots=True)
class Window:
    """How much history a turn may carry. `rounds` None: all of it. `truncate`: drop old rounds rather than refuse.
    `thoughts`: the model reads what it thought in earlier answers, too."""

    rounds: int | None = None
    truncate: bool = False
    thoughts: bool = False


@lru_cache(maxsize=8)
def _control_tokens(added_tokens: tuple[str, ...]) -> re.Pattern[str]:
    exact = "|".join(re.escape(token) for token in sorted(added_tokens, key=len, reverse=True) if len(token) > 1)
    # Looking ahead finds tokens that stand inside or across each other, too.
    return re.compile(rf"(?={exact or _UNKNOWN_TOKENIZER}).", re.DOTALL)


def neutralise(text: str, added_tokens: tuple[str, ...]) -> str:
    """Break every control token of the tokenizer inside `text` with a word joiner, so that it stays mere text.

    Only what is sent to the engine is changed, never what is stored or shown. With no list (a bare vLLM) the usual
    shapes of control tokens are broken.
    """
    return _control_tokens(added_tokens).sub(lambda head: head[0] + WORD_JOINER, text)


def harmless(value: Any, added_tokens: tuple[str, ...]) -> Any:
    """`value` with the control tokens broken up in every string inside, keys too: templates print them all."""
    if isinstance(value, str):
        return neutralise(value, added_tokens)
    if isinstance(value, list):
        return _apart([harmless(item, added_tokens) for item in value], added_tokens)
    if isinstance(value, dict):
        return {neutralise(key, added_tokens): harmless(item, added_tokens) for key, item in value.items()}
    return value


def harmless_json(text: str, added_tokens: tuple[str, ...]) -> str:
    """The same for JSON in a string, as the arguments of a call are: templates print what its escapes stand for."""
    try:
        safe = json.dumps(harmless(json.loads(text), added_tokens), ensure_ascii=False)
    except json.JSONDecodeError:
        return neutralise(text, added_tokens)
    except (ValueError, RecursionError):  # numbers too long, nested too deep: nobody could read it
        return "{}"
    return safe.encode("utf-8", "replace").decode()  # half a character is no text


def _apart(parts: list[Any], added_tokens: tuple[str, ...]) -> list[Any]:
    """Parts of text, each harmless, so that none is a control token together with those before it: templates print
    them one right after the other."""
    said = ""
    for at, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(text := part.get("text"), str):
            continue
        if neutralise(said + text, added_tokens) != said + text:
            text = WORD_JOINER + text
            parts[at] = {**part, "text": text}
        said += text
    return parts


def text_of(item: Mapping[str, Any]) -> str:
    """The text of a message, or of a call's output; it is a string or a list of parts. Of an image it says so."""
    content = item.get("output" if item.get("type") == "function_call_output" else "content", "")
    if isinstance(content, str):
        return content
    return "".join(_text_of_part(part) for part in content)


def _text_of_part(part: Mapping[str, Any]) -> str:
    if part["type"] == "input_image":
        return f"\n{IMAGE_NOTE}\n"
    return str(part.get("text") or part.get("refusal") or "")


def rounds_of(items: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Split items into rounds; what stands before the first user message is a round of its own."""
    rounds: list[list[Mapping[str, Any]]] = []
    for item in items:
        if not rounds or (item.get("role") == "user" and any(i.get("role") != "user" for i in rounds[-1])):
            rounds.append([])
        rounds[-1].append(item)
    return rounds


def current(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """What of a context is still read: from the newest compaction on that stands for everything before it."""
    for at in range(len(items) - 1, -1, -1):
        if items[at].get("type") == "compaction" and items[at].get("kept") is not None:
            return items[at:]
    return items


def first_round(total: int, rounds: int | None) -> int:
    """Where the window of at least `rounds` rounds begins among `total` earlier ones.

    It moves in steps of `rounds`, so the prompt's head - and with it the engine's prefix cache - stays the same for
    that many turns instead of changing with every one.
    """
    if rounds is None or total <= rounds:
        return 0
    if rounds == 0:
        return total
    return (total - rounds) // rounds * rounds


def to_messages(
    system: str | None,
    items: Sequence[Mapping[str, Any]],
    added_tokens: tuple[str, ...],
    *,
    thoughts: bool = False,
    sees: bool = False,
) -> list[Message]:
    """Chat messages for the engine: `system` first, then the items; `developer` is the system role of old models.

    The output of a call that is not there (its round was dropped) is left out: templates need the pair. So are
    `thoughts`, but for those that the caller sent as input. A model that does not see is told of a picture.
    """
    messages = [Message("system", neutralise(system, added_tokens))] if system else []
    called: set[str] = set()
    thought = ""
    for item in items:
        before, thought = thought, ""
        match item.get("type", "message"):
            case "message":
                role = "system" if item["role"] == "developer" else item["role"]
                before = before if role == "assistant" else ""
                messages.append(Message(role, _content_of(item, added_tokens, sees), reasoning=before))
            case "function_call":
                called.add(item["call_id"])
                _add_call(messages, _call(item, added_tokens), before)
            case "reasoning" if thoughts or item.get("given"):
                thought = neutralise(before + item["text"], added_tokens)
            case "compaction":
                told = [*item["instructions"], SUMMARY_NOTE + item["summary"]]
                messages += [Message("system", neutralise(text, added_tokens)) for text in told]
                messages += to_messages(None, item.get("kept") or (), added_tokens, thoughts=thoughts, sees=sees)
            case "function_call_output" if item["call_id"] in called:
                id = neutralise(item["call_id"], added_tokens)
                messages.append(Message("tool", neutralise(text_of(item), added_tokens), tool_call_id=id))
    return messages


def _content_of(item: Mapping[str, Any], added_tokens: tuple[str, ...], sees: bool) -> str | list[dict[str, Any]]:
    parts = item["content"]
    if not sees or isinstance(parts, str) or not any("image_url" in part for part in parts):
        return neutralise(text_of(item), added_tokens)
    return _apart([_shown_part(part, added_tokens) for part in parts], added_tokens)


def _shown_part(part: Mapping[str, Any], added_tokens: tuple[str, ...]) -> dict[str, Any]:
    """A part as vLLM takes it. A picture is data, in which nothing is to be broken up."""
    if "image_url" in part:
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": neutralise(_text_of_part(part), added_tokens)}


def _call(item: Mapping[str, Any], added_tokens: tuple[str, ...]) -> ToolCall:
    function = Function(neutralise(item["name"], added_tokens), harmless_json(item["arguments"], added_tokens))
    return ToolCall(neutralise(item["call_id"], added_tokens), function)


def _add_call(messages: list[Message], call: ToolCall, thought: str) -> None:
    """Calls belong to the message of the model that they came with; with new thoughts another one begins."""
    if messages and messages[-1].role == "assistant" and not thought:
        messages[-1] = msgspec.structs.replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
    else:
        messages.append(Message("assistant", "", (call,), reasoning=thought))


def unknown_output(items: Sequence[Mapping[str, Any]], start: int) -> int | None:
    """Where from `start` on stands the output of a call that no item before it is; None: nowhere."""
    called: set[str] = set()
    for index, item in enumerate(items):
        if item.get("type") == "function_call":
            called.add(item["call_id"])
        elif item.get("type") == "compaction":
            called.update(kept["call_id"] for kept in item.get("kept") or () if kept.get("type") == "function_call")
        elif index >= start and item.get("type") == "function_call_output" and item["call_id"] not in called:
            return index
    return None


def estimate_tokens(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    said = sum(_bytes_said(message) // BYTES_PER_TOKEN + 8 for message in messages)
    shown = sum(PICTURE_TOKENS for message in messages for _ in _pictures(message))
    return said + shown + (_bytes_of_calls(messages) + _bytes_of_tools(tools)) // BYTES_PER_TOKEN


def has_pictures(messages: Sequence[Message]) -> bool:
    return any(_pictures(message) for message in messages)


def _pictures(message: Message) -> list[dict[str, Any]]:
    parts = [] if isinstance(message.content, str) else message.content
    return [part for part in parts if part["type"] == "image_url"]


def most_tokens(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """What a prompt without pictures cannot exceed: no tokenizer makes more than one token of a byte, no template more
    than these.

    Templates write the JSON of tools and calls anew, with other spaces and escapes.
    """
    said = sum(_bytes_said(message) + TEMPLATE_TOKENS for message in messages) + TEMPLATE_TOKENS
    calls = _bytes_of_calls(messages) * JSON_GROWTH
    return said + calls + (_bytes_of_tools(tools) * JSON_GROWTH + TOOLS_TEMPLATE_TOKENS if tools else 0)


def _bytes_said(message: Message) -> int:
    content = message.content
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return sum(len(text.encode()) for text in (*texts, message.reasoning))


def _bytes_of_calls(messages: Sequence[Message]) -> int:
    return sum(len(msgspec.json.encode(message.tool_calls)) for message in messages if message.tool_calls)


def _bytes_of_tools(tools: Sequence[Mapping[str, Any]]) -> int:
    return len(msgspec.json.encode(tools)) if tools else 0


def drop_for_budget(sizes: Sequence[int], excess_tokens: int) -> int:
    """How many of the oldest rounds must go so that at least `excess_tokens` go with them; the newest always stays.

    `sizes`: estimated tokens of each round, oldest first.
    """
    dropped = 0
    while excess_tokens > 0 and dropped < len(sizes) - 1:
        excess_tokens -= sizes[dropped]
        dropped += 1
    return dropped


def title_of(question: str, limit: int = 60) -> str:
    """A conversation's title: the first line of its first question, shortened at a word."""
    line = next((line.strip() for line in question.splitlines() if line.strip()), "")
    if len(line) <= limit:
        return line
    head = line[:limit]
    return (head.rsplit(" ", 1)[0] if " " in head[limit // 2 :] else head).rstrip(" ,.;:") + "…"
