"""Pure: what an engine says of a form that is not plain text, kept back until it is whole; knows no engine.

Nothing of a call is shown before the whole answer is there: an engine that dies in the middle of a call can then write
it again, and perhaps otherwise, and nobody has seen the first try.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from gateway.conversations import OUTPUT_ITEMS
from gateway.conversations.ids import new_id
from gateway.engine import CallDelta
from gateway.events import Call, Form, Logprob, Rest

MOST_CALLS = OUTPUT_ITEMS // 2 - 1  # of one answer: each may have a text before it


@dataclass(slots=True)
class _Writing:
    """A call that is being written."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Kept:
    """Text and calls in the order in which they began."""

    parts: list[str | _Writing] = field(default_factory=list)
    _calls: dict[int, _Writing] = field(default_factory=dict)
    _spans: list[tuple[int, int]] = field(default_factory=list)  # of each part: from and to which token it goes
    _tokens: int = 0

    def say(self, text: str, tokens: int = 0) -> None:
        """`tokens`: how many log probabilities there were so far."""
        if not text:
            return
        if self.parts and isinstance(last := self.parts[-1], str):
            self.parts[-1] = last + text
            self._spans[-1] = (self._spans[-1][0], tokens)
        else:
            self.parts.append(text)
            self._spans.append((self._tokens, tokens))
        self._tokens = tokens

    def call(self, deltas: Sequence[CallDelta], tokens: int = 0) -> None:
        self._tokens = tokens if deltas else self._tokens
        for delta in deltas:
            if (call := self._calls.get(delta.index)) is None:
                call = self._calls[delta.index] = _Writing()
                self.parts.append(call)
                self._spans.append((tokens, tokens))
            call.id = delta.id or call.id
            if delta.function:
                call.name = delta.function.name or call.name
                call.arguments.append(delta.function.arguments or "")

    @property
    def calls(self) -> bool:
        return bool(self._calls)

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def clear(self) -> None:
        self.parts.clear()
        self._calls.clear()
        self._spans.clear()
        self._tokens = 0

    def rest(self, form: Form, tokens: int, cut: bool, logprobs: Sequence[Logprob] = ()) -> Rest:
        """All of it that may be said: no call of a tool that was not offered, not more calls than asked for."""
        names = {tool["function"]["name"] for tool in form.tools}
        left = min(MOST_CALLS, MOST_CALLS if form.parallel else 1, form.most_calls or MOST_CALLS)
        parts: list[str | Call] = []
        likely: list[tuple[Logprob, ...]] = []
        for at, part in enumerate(self.parts):
            if isinstance(part, str):
                if part.strip() or not self.calls:  # else the blank between two calls, or before the first
                    parts.append(part)
                    likely.append(tuple(logprobs[slice(*self._spans[at])]))
            elif part.name in names and left:
                left -= 1
                parts.append(_finished(part, cut and at == len(self.parts) - 1))
        return Rest(tuple(parts), tokens, cut, tuple(likely) if logprobs else ())


def _finished(call: _Writing, cut: bool) -> Call:
    arguments = "".join(call.arguments)
    return Call(call.id or new_id("call"), call.name, arguments or "{}", complete=not (cut and not _is_json(arguments)))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except ValueError:
        return False
    return True
