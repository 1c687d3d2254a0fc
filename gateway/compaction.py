"""A conversation made short: what the engine is asked for, and what goes on in its place. Pure: no engine, no secrets.

What people wrote stays as it is; everything else becomes one item: a summary by the model, and the instructions that
stood among the messages, word for word. An item that a turn makes by itself stands for everything before it, the
question included: it keeps that, and the newest of what people wrote, inside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.prompt import BYTES_PER_TOKEN, current, text_of, unknown_output

Json = Mapping[str, Any]

REQUEST = (
    "Summarise our conversation so far for somebody who will go on with it and can read nothing but your summary and "
    "my own messages. Keep facts, names, numbers, decisions, results of tools, and what is still open. Write the "
    "summary only."
)
SHARE_OF_PEOPLE = 4  # messages of people fill up to one of so many parts of the threshold
SHARE_OF_SUMMARY = 2


class Compact(msgspec.Struct, frozen=True):
    """What is sealed into the item. `kept` None: what people wrote stands beside it, not inside."""

    summary: str
    instructions: tuple[str, ...] = ()  # of system and developer messages, oldest first
    kept: tuple[dict[str, Any], ...] | None = None


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Compact).decode


def question(context: Sequence[Json]) -> list[Json]:
    """What the engine reads to summarise: everything, then the request; most of it is in its prefix cache."""
    return [*context, {"type": "message", "role": "user", "content": REQUEST}]


def kept(context: Sequence[Json]) -> list[Json]:
    """The messages of people, word for word."""
    return [message for item in current(context) for message in _of_people(item)]


def compact(context: Sequence[Json], summary: str) -> Compact:
    """Instructions of an earlier compaction are instructions still."""
    instructions: list[str] = []
    for item in current(context):
        if item.get("type") == "compaction":
            instructions += item["instructions"]
        elif _role(item) in ("system", "developer"):
            instructions.append(text_of(item))
    return Compact(summary, tuple(instructions))


def asked(context: Sequence[Json]) -> int:
    """Where that begins which the model has not answered yet: questions, or outputs with the calls they belong to."""
    at = len(context)
    while at and _asks(context[at - 1]):
        at -= 1
    while at and unknown_output(context[at:], 0) is not None:
        at -= 1
    return at


def whole(context: Sequence[Json], at: int, summary: str, compact_at: int) -> Compact:
    """What stands for all of the context: `summary` is of what comes before `at`."""
    short = compact(context[:at], summary)
    people, room = [], compact_at // SHARE_OF_PEOPLE * BYTES_PER_TOKEN
    for message in reversed(kept(context[:at])):
        if (size := len(text_of(message).encode())) <= room:
            room -= size
            people.append(dict(message))
    return Compact(summary, short.instructions, (*reversed(people), *map(dict, context[at:])))


def opened(item: Json, content: Compact) -> dict[str, Any]:
    """The item as it is kept: what it says beside its seal."""
    told: dict[str, Any] = {**item, "summary": content.summary, "instructions": list(content.instructions)}
    return told if content.kept is None else {**told, "kept": list(content.kept)}


def _asks(item: Json) -> bool:
    return item.get("type") == "function_call_output" or _role(item) in ("user", "system", "developer")


def _of_people(item: Json) -> Sequence[Json]:
    inside = item.get("kept") or () if item.get("type") == "compaction" else (item,)
    return [message for message in inside if _role(message) == "user"]


def _role(item: Json) -> str | None:
    return item.get("role") if item.get("type", "message") == "message" else None
