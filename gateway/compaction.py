"""A conversation made short: what the engine is asked for, and what goes on in its place. Pure: no engine, no secrets.

What people wrote stays as it is; everything else becomes one item: a summary by the model, and the instructions that
stood among the messages, word for word.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.prompt import text_of

Json = Mapping[str, Any]

REQUEST = (
    "Summarise our conversation so far for somebody who will go on with it and can read nothing but your summary and "
    "my own messages. Keep facts, names, numbers, decisions, results of tools, and what is still open. Write the "
    "summary only."
)


class Compact(msgspec.Struct, frozen=True):
    """What is sealed into the item."""

    summary: str
    instructions: tuple[str, ...] = ()  # of system and developer messages, oldest first


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Compact).decode


def question(context: Sequence[Json]) -> list[Json]:
    """What the engine reads to summarise: everything, then the request; most of it is in its prefix cache."""
    return [*context, {"type": "message", "role": "user", "content": REQUEST}]


def kept(context: Sequence[Json]) -> list[Json]:
    """The messages of people, word for word."""
    return [item for item in context if _role(item) == "user"]


def compact(context: Sequence[Json], summary: str) -> Compact:
    """Instructions of an earlier compaction are instructions still."""
    instructions: list[str] = []
    for item in context:
        if item.get("type") == "compaction":
            instructions += item["instructions"]
        elif _role(item) in ("system", "developer"):
            instructions.append(text_of(item))
    return Compact(summary, tuple(instructions))


def opened(item: Json, content: Compact) -> Json:
    """The item as it is kept: what it says beside its seal."""
    return {**item, "summary": content.summary, "instructions": list(content.instructions)}


def _role(item: Json) -> str | None:
    return item.get("role") if item.get("type", "message") == "message" else None
