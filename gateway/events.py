"""The events of a turn, as they are logged and shown. Plain values: knows neither who makes nor who shows them.

Compact on the wire of the log: arrays, tagged by one letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from gateway.prompt import Window


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the engine is asked for; every value is effective, nothing is left to the engine's own defaults."""

    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    extra: Mapping[str, Any] = field(default_factory=dict)  # checked by the door: seed, stop, top_k, min_p, penalties


class Form(msgspec.Struct, frozen=True, array_like=True):
    """What an answer may be beside plain text; `tools`, `choice`, `format` as vLLM takes them, checked by the door."""

    tools: tuple[dict[str, Any], ...] = ()  # all that may be called
    choice: str | dict[str, Any] = "auto"
    parallel: bool = True
    most_calls: int | None = None
    format: dict[str, Any] | None = None  # JSON of a given form
    at_once: bool = False  # nobody reads along: its JSON is shown when it is whole, and may be written again until then
    effort: str | None = None  # how much a model that reasons shall think, in OpenAI's words

    def __bool__(self) -> bool:
        return bool(self.tools or self.format)


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """What is needed to run the turn again from its stored items: the first entry of a stored turn's log."""

    model: str
    system: str | None
    window: Window
    sampling: Sampling
    form: Form = Form()
    compact_at: int | None = None  # tokens of context above which it is made short first
    flex: bool = False  # it can wait
    key: str | None = None  # it came with


class Queued(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    position: int  # 0: the seat is given
    eta_seconds: float | None = None


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    state: Literal["loading", "engine_lost", "resuming", "compacting"]
    eta_seconds: float | None = None


class Compacted(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """The context was made short: `item`, as it is stored, stands for everything before it. And what that has cost."""

    item: dict[str, Any]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """The engine has read the prompt. Its token ids are kept once, so that a broken answer can be continued."""

    prompt_token_ids: tuple[int, ...] = ()


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token was, and the likeliest in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] | None = None  # of these tokens, where they were asked for


class Thought(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """What a model that reasons says to itself, before its answer."""

    text: str
    token_ids: tuple[int, ...] = ()


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A call of a tool. Not `complete`: its arguments were cut by the limit of tokens."""

    id: str
    name: str
    arguments: str  # JSON
    complete: bool = True


class Rest(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """The end of an answer that was kept back until it was whole: calls of tools, text between and after them.

    Nothing but Finished follows. One event, so that whoever takes the turn over has all of it or none.
    """

    parts: tuple[str | Call, ...]
    tokens: int  # that were not told before
    cut: bool = False  # by the limit of tokens
    logprobs: tuple[tuple[Logprob, ...], ...] = ()  # of each text among the parts, where they were asked for


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Seconds of the wall clock: in line, until the first token, until the last."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class Finished(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """The end of every turn, also of a broken one: then `code` and `message` say why.

    `status`: completed | incomplete (reason max_output_tokens) | cancelled | failed.
    """

    status: Literal["completed", "incomplete", "cancelled", "failed"]
    reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    timing: Timing = Timing()
    code: str | None = None
    message: str | None = None
    completed_at: int = 0
    reasoning_tokens: int = 0  # of the completion's


TurnEvent = Asked | Queued | Progress | Compacted | Started | Thought | Delta | Rest | Finished

encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(TurnEvent).decode
