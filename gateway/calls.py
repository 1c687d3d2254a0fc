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
from gateway.events import Call, Form, Rest

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

    def say(self, text: str) -> None:
        if not text:
            return
        if self.parts and isinstance(last := self.parts[-1], str):
            self.parts[-1] = last + text
        else:
            self.parts.append(text)

    def call(self, deltas: Sequence[CallDelta]) -> None:
        for delta in deltas:
            if (call := self._calls.get(delta.index)) is None:
                call = self._calls[delta.index] = _Writing()
                self.parts.append(call)
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

    def rest(self, form: Form, tokens: int, cut: bool) -> Rest:
        """All of it that may be said: no call of a tool that was not offered, not more calls than asked for."""
        names = {tool["function"]["name"] for tool in form.tools}
        left = min(MOST_CALLS, MOST_CALLS if form.parallel else 1, form.most_calls or MOST_CALLS)
        parts: list[str | Call] = []
        for at, part in enumerate(self.parts):
            if isinstance(part, str):
                if part.strip() or not self.calls:  # else the blank between two calls, or before the first
                    parts.append(part)
            elif part.name in names and left:
                left -= 1
                parts.append(_finished(part, cut and at == len(self.parts) - 1))
        return Rest(tuple(parts), tokens, cut)


def _finished(call: _Writing, cut: bool) -> Call:
    arguments = "".join(call.arguments)
    return Call(call.id or new_id("call"), call.name, arguments or "{}", complete=not (cut and not _is_json(arguments)))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except ValueError:
        return False
    return True
