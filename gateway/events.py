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


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """What is needed to run the turn again from its stored items: the first entry of a stored turn's log."""

    model: str
    system: str | None
    window: Window
    sampling: Sampling


class Queued(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    position: int  # 0: the seat is given
    eta_seconds: float | None = None


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    state: Literal["loading", "engine_lost", "resuming", "storage_wait"]
    eta_seconds: float | None = None


class Started(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """The engine has read the prompt. Its token ids are kept once, so that a broken answer can be continued."""

    prompt_token_ids: tuple[int, ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    text: str
    token_ids: tuple[int, ...] = ()


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


TurnEvent = Asked | Queued | Progress | Started | Delta | Finished

encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(TurnEvent).decode
