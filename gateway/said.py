"""What exists of an answer: a fold over its events, and the items it is stored as. Knows neither engine nor storage."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.events import Call, Compacted, Delta, Logprob, Rest, Started, Thought, TurnEvent

_MARK = re.compile(r"\s*(?:<[^<>]{1,40}>)?\n*")  # what a model writes before and after its thoughts


@dataclass(slots=True)
class Said:
    """What exists of an answer: a fold over its events, and enough to continue it."""

    compacted: Compacted | None = None
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)  # end where `text` ends, never inside a character
    thoughts: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # of the text, where they were asked for
    rest: Rest | None = None  # the end of the answer: the engine has nothing more to say
    tokens: int = 0
    thought_tokens: int = 0  # of these: the first ones
    unseen: int = 0  # tokens beside these, of what is kept back until it is whole

    @classmethod
    def of(cls, events: Iterable[TurnEvent]) -> "Said":
        said = cls()
        for event in events:
            said.hear(event)
        return said

    def hear(self, event: TurnEvent) -> None:
        if isinstance(event, Delta):
            self.pieces.append(event.text)
            self.token_ids += event.token_ids
            self.tokens += len(event.token_ids) or 1
            if event.logprobs is not None:
                self.logprobs += event.logprobs
        elif isinstance(event, Thought):
            self.thoughts.append(event.text)
            self.token_ids += event.token_ids
            self.tokens += len(event.token_ids)
            self.thought_tokens += len(event.token_ids)
        elif isinstance(event, Started):
            self.prompt_token_ids = event.prompt_token_ids
        elif isinstance(event, Rest):
            self.rest = event
            self.tokens += event.tokens
        elif isinstance(event, Compacted):
            self.compacted = event

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def thought(self) -> str:
        return "".join(self.thoughts)

    def begins_in(self, raw: str, *, thinks: bool) -> int:
        """Where in the raw text of its tokens the text begins, or while it thinks the thoughts; -1: nobody knows."""
        if not self.thoughts:
            return 0
        begin = _behind(raw, 0, self.thought)
        return begin if thinks or begin < 0 else _behind(raw, begin + len(self.thought), self.text)

    @property
    def can_go_on(self) -> bool:
        """Nothing said yet, or every token of it known (a bare engine may not tell them)."""
        return not self.tokens or self.rest is not None or bool(self.prompt_token_ids and self.token_ids)

    @property
    def begun(self) -> bool:
        """Something of the answer is there, or the engine has read what it answers."""
        return bool(self.tokens or self.prompt_token_ids)

    def counts(self) -> dict[str, int]:
        """Tokens of an answer that did not come to its end, what was made short for it included."""
        short = self.compacted
        return {
            "prompt_tokens": len(self.prompt_token_ids) + (short.prompt_tokens if short else 0),
            "completion_tokens": self.tokens + self.unseen + (short.completion_tokens if short else 0),
            "reasoning_tokens": self.thought_tokens,
        }

    def output(self, complete: bool) -> list[dict[str, Any]]:
        """The items of the answer as they are stored; the last message of one that broke off is incomplete."""
        items: list[dict[str, Any]] = [self.compacted.item] if self.compacted else []
        text, logprobs = self.text, list(self.logprobs)
        if self.thoughts:
            items.append(thought_item(self.thought, complete=bool(complete or text or (self.rest and self.rest.parts))))
        for part, likely in parts_of(self.rest):
            if isinstance(part, str):
                text += part
                logprobs += likely
                continue
            if text:
                items.append(answer_item(text, True, logprobs))
            items.append(call_item(part))
            text, logprobs = "", []
        if text or (complete and not items):
            items.append(answer_item(text, complete, logprobs))
        return items


def _behind(raw: str, at: int, part: str) -> int:
    """Where `part` begins in the raw text from `at` on, as a rule behind a mark."""
    mark = _MARK.match(raw, at)
    return mark.end() if mark and raw.startswith(part, mark.end()) else raw.find(part, at)


def thought_item(text: str, complete: bool) -> dict[str, Any]:
    return {"type": "reasoning", "text": text, "status": "completed" if complete else "incomplete"}


def call_item(call: Call) -> dict[str, Any]:
    status = "completed" if call.complete else "incomplete"
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def answer_item(text: str, complete: bool, logprobs: Sequence[Logprob] = ()) -> dict[str, Any]:
    """The answer as it is stored: compact, in the Responses API's shape but for the text as a plain string, and log
    probabilities beside it as plain arrays."""
    item = {
        "type": "message",
        "role": "assistant",
        "status": "completed" if complete else "incomplete",
        "content": text,
    }
    return {**item, "logprobs": msgspec.to_builtins(logprobs)} if logprobs else item


def parts_of(rest: Rest | None) -> Iterator[tuple[str | Call, tuple[Logprob, ...]]]:
    """The end of an answer, each text with its log probabilities."""
    likely = iter(rest.logprobs if rest else ())
    for part in rest.parts if rest else ():
        yield part, next(likely, ()) if isinstance(part, str) else ()
