"""What an engine refuses, as a refusal of ours: read from its HTTP error, or from the error in a stream it has begun.

What its caller may know is told; addresses, stacks and paths never are. Knows no route and no request.
"""

import re

import msgspec

from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineAway,
    EngineError,
    EngineLost,
    PromptRefused,
    Refusal,
)

CANNOT_NOW = "The engine cannot take the request just now; ask again in a moment."
MESSAGE_CHARACTERS = 500  # of an error of the engine
_NEVER_SHOWN = re.compile(r"0x[0-9a-fA-F]{4,}|Traceback|(?:^|[\s'\"(])/[\w.-]+/")  # addresses, stacks, paths
_OF_A_SCHEMA = re.compile(r"grammar|schema|structural tag|structured output", re.IGNORECASE)
_OF_THE_REQUEST = (400, 422)
_AWAY = (429, 500, 502, 503)  # while it drains it answers 500 to what is new: that is being away, not a bug


class Reason(msgspec.Struct, frozen=True):
    """An error as vLLM tells it."""

    message: str = ""
    param: str | None = None
    code: int | str | None = None

    @property
    def shown(self) -> str:
        """What may be told of it; empty when it says nothing, or something of its insides."""
        return "" if _NEVER_SHOWN.search(self.message) else self.message[:MESSAGE_CHARACTERS]


class _Refused(msgspec.Struct, frozen=True):
    error: Reason = Reason()


_decode = msgspec.json.Decoder(_Refused).decode


def refused(status: int, body: bytes) -> Refusal:
    """An HTTP error of the engine."""
    if status in _AWAY:
        return EngineAway(CANNOT_NOW)
    reason = reason_of(body)
    if status in _OF_THE_REQUEST:
        return _wrong(reason)
    return EngineError(f"The engine refused the request ({status}): {reason.shown or 'it gave no reason'}")


def reason_of(body: bytes) -> Reason:
    """Of an error's JSON; one that cannot be read gives no reason."""
    try:
        return _decode(body).error
    except ValueError:
        return Reason()


def broke_off(reason: Reason) -> Refusal:
    """The error that ends a stream: vLLM looks at some of a request only when its stream has begun."""
    if reason.code in _OF_THE_REQUEST:
        return _wrong(reason)
    return EngineLost(f"The engine broke off: {reason.shown or 'it gave no reason'}")


def _wrong(reason: Reason) -> BadRequest:
    message, param = reason.shown, (reason.param or "").removeprefix("body.") or None
    if "maximum context length" in message or "max_model_len" in message:
        return ContextLengthExceeded(message, param=param)
    if _OF_A_SCHEMA.search(message):
        return PromptRefused(f"The engine cannot hold an answer to this schema: {message}", of_a_schema=True)
    told = f"The engine refused the request: {message}" if message else "The engine refused the request."
    return PromptRefused(told, param=param)
