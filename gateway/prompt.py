"""Pure: from items to the messages a model reads - window, budget, control tokens. Knows no engine and no storage.

A *round* is a user message with everything up to the next one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

WORD_JOINER = "\u2060"  # invisible, and no tokenizer's control token contains it
TEMPLATE_TOKENS = 32  # that a chat template may put around a message
BYTES_PER_TOKEN = 3  # a cautious estimate while no engine can count: English has about 4, Chinese about 3
_UNKNOWN_TOKENIZER = (
    r"<\|[^|<>\s]{1,64}\|>|<\uff5c[^<>\s]{1,64}\uff5c>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|unk|pad)>"
    r"|<(?:start|end)_of_turn>|</?(?:think|tool_call|tool_response)>"
)


class Message(msgspec.Struct, frozen=True):
    """One chat message as vLLM takes it; text only."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Window:
    """How much history a turn may carry. `rounds` None: all of it. `truncate`: drop old rounds rather than refuse."""

    rounds: int | None = None
    truncate: bool = False


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


def text_of(item: Mapping[str, Any]) -> str:
    """The text of a message item; its content is a string or a list of parts."""
    content = item.get("content", "")
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def rounds_of(items: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Split items into rounds; what stands before the first user message is a round of its own."""
    rounds: list[list[Mapping[str, Any]]] = []
    for item in items:
        if not rounds or (item.get("role") == "user" and any(i.get("role") != "user" for i in rounds[-1])):
            rounds.append([])
        rounds[-1].append(item)
    return rounds


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


def to_messages(system: str | None, items: Sequence[Mapping[str, Any]], added_tokens: tuple[str, ...]) -> list[Message]:
    """Chat messages for the engine: `system` first, then the items; `developer` is the system role of old models."""
    messages = [Message("system", neutralise(system, added_tokens))] if system else []
    for item in items:
        if item.get("type", "message") != "message":
            continue
        role = "system" if item["role"] == "developer" else item["role"]
        messages.append(Message(role, neutralise(text_of(item), added_tokens)))
    return messages


def estimate_tokens(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode()) // BYTES_PER_TOKEN + 8 for message in messages)


def most_tokens(messages: Sequence[Message]) -> int:
    """What the prompt cannot exceed: no tokenizer makes more than one token of a byte, no template more than these."""
    return sum(len(message.content.encode()) + TEMPLATE_TOKENS for message in messages) + TEMPLATE_TOKENS


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
