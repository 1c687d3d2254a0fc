"""What the engine says in one run of a turn, made events: thoughts apart, characters whole, calls kept
until they are, times noted.

Knows no engine: it is given the chunks of a burst.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.calls import Kept
from gateway.engine import ChatChoice, ChatChunk, TokenLogprob, Usage
from gateway.errors import EngineError
from gateway.events import Delta, Finished, Form, Logprob, Rest, Started, Thought, Timing, TurnEvent
from gateway.said import Said


@dataclass(slots=True)
class Speech:
    """What the engine has said in this run, and when. `said` is the whole answer, earlier runs included."""

    said: Said
    form: Form | None  # None: plain text
    began: float
    seated: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    before: int = 0  # tokens of the answer that the engine was given to go on from
    finish_reason: str | None = None
    usage: Usage | None = None
    held: list[int] = field(default_factory=list)  # ids that end inside a character; kept back until its text comes
    logprobs: list[Logprob] = field(default_factory=list)  # where asked for: of tokens whose text is not told yet
    kept: Kept = field(default_factory=Kept)  # what is not shown before the answer is whole
    seen_thought: str = ""  # the end of the thoughts that were seen, where it is written again
    seen: str = ""  # what was seen already of an answer that is written again, as far as it has not come yet

    def begin(self) -> None:
        """A new try: ids whose text never came belong to nothing."""
        self.held.clear()
        self.logprobs.clear()
        self.kept.clear()
        self.tokens, self.said.unseen = self.tokens + self.said.unseen, 0
        self.seen, self.seen_thought = "", ""
        if self.form and self.form.format:
            self.seen = self.said.text
            if self.said.thought_tokens:
                del self.said.token_ids[self.said.thought_tokens :]
        self.before = 0 if self.anew else len(self.said.token_ids)
        self.usage = self.finish_reason = None

    @property
    def anew(self) -> bool:
        """The answer is written again from its beginning: a grammar of JSON cannot be taken up in the middle, but
        behind the thoughts before it."""
        said, form = self.said, self.form
        return form is not None and (not said.token_ids or (form.format is not None and not said.thought_tokens))

    def take(self, chunks: Sequence[ChatChunk]) -> list[TurnEvent]:
        """The events of one burst: at most one of each kind, however many tokens came together."""
        events: list[TurnEvent] = []
        text = ""
        ids: list[int] = []
        likely: list[Logprob] = []
        thought, thought_ids = "", list[int]()
        for chunk in chunks:
            if chunk.prompt_token_ids is not None and not self.said.prompt_token_ids:
                events.append(Started(chunk.prompt_token_ids))
            if chunk.usage is not None:
                self.usage = chunk.usage
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                self.held.extend(choice.token_ids or ())
                if choice.logprobs is not None:
                    self.logprobs += map(_logprob, choice.logprobs.content or ())
                content = choice.delta.content or choice.text
                if choice.delta.reasoning and not text and self._thinks:
                    thought += self._think(choice.delta.reasoning, begun=bool(thought))
                    if thought and not content:  # else nobody knows which of its tokens are the thought's
                        thought_ids += self.held
                        self.held.clear()
                        self.logprobs.clear()
                if self.logprobs and not (content or text) and (thought or self.said.thoughts) and self._thinks:
                    self.logprobs.clear()  # of the mark behind the thoughts
                if content and not text and (thought or self.said.thoughts) and self._at_its_beginning:
                    content = content.lstrip("\n")
                if content and self.seen:
                    content, self.seen = self._again(content, self.seen)
                if self.form is not None:
                    content = self._keep(self.form, choice, content or "", begun=bool(text or self.said.tokens))
                if content:
                    text += content
                    ids += self.held
                    self.held.clear()
                    if self.logprobs:
                        likely += self.logprobs
                        self.logprobs.clear()
        if thought:
            self._note(len(thought_ids))
            events.append(Thought(thought, tuple(thought_ids)))
        if text:
            self._note(len(ids) or 1)
            events.append(Delta(text, tuple(ids), tuple(likely) or None))
        if self.form is not None:
            self.said.unseen = len(self.held)
        return events

    @property
    def _thinks(self) -> bool:
        """A thought may still be shown: not beside an answer, and not once more."""
        said = self.said
        return not (said.pieces or self.kept.parts or (said.thoughts and self.anew))

    @property
    def _at_its_beginning(self) -> bool:
        return not self.said.pieces or self.seen == self.said.text

    def _think(self, thought: str, *, begun: bool) -> str:
        """What may be shown of it; models put blank lines around their thoughts."""
        if self.seen_thought:
            thought, self.seen_thought = self._again(thought, self.seen_thought)
        return thought if begun or self.said.thoughts else thought.lstrip("\n")

    def _keep(self, form: Form, choice: ChatChoice, content: str, *, begun: bool) -> str:
        """What may be shown at once: text before the first call, but not the blank that often stands before one."""
        calls = choice.delta.tool_calls or ()
        if calls or self.kept.calls or (form.format is not None and form.at_once):
            self._note(0)
            self.kept.say(content, len(self.logprobs))
            self.kept.call(calls, len(self.logprobs))
            return ""
        content = self.kept.text + content
        self.kept.clear()
        if not begun and not content.strip():
            self.kept.say(content, len(self.logprobs))
            return ""
        return content

    def _again(self, content: str, seen: str) -> tuple[str, str]:
        """What is new of what is written again, and what of the seen is still to come. Raises EngineError where it is
        not what was seen."""
        known = min(len(seen), len(content))
        if content[:known] != seen[:known]:
            message = "The engine was lost in the middle of the answer, and writes another one now; ask again."
            raise EngineError(message, code="engine_lost")
        self.logprobs.clear()
        if self.form is not None and self.form.format is not None:
            self.held.clear()
        return content[known:], seen[known:]

    def rest(self) -> Rest | None:
        """What was kept, once the engine has ended."""
        if self.form is None or not self.kept.parts:
            return None
        tokens, self.said.unseen = max(1, len(self.held)), 0
        self._note(tokens)
        return self.kept.rest(self.form, tokens, self.finish_reason == "length", self.logprobs)

    def _note(self, tokens: int) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens += tokens

    def finish(self) -> Finished:
        usage = self.usage or Usage(self.before + len(self.said.prompt_token_ids), self.said.tokens - self.before)
        cut = self.finish_reason == "length"
        prompt_tokens = usage.prompt_tokens - self.before
        cached_tokens, completion_tokens = min(usage.cached_tokens, prompt_tokens), usage.completion_tokens or 0
        if (short := self.said.compacted) is not None:
            prompt_tokens, cached_tokens = prompt_tokens + short.prompt_tokens, cached_tokens + short.cached_tokens
            completion_tokens += short.completion_tokens
        return Finished(
            status="incomplete" if cut else "completed",
            reason="max_output_tokens" if cut else None,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=self.before + completion_tokens,
            timing=self.timing(),
            reasoning_tokens=self.said.thought_tokens,
        )

    def timing(self) -> Timing:
        first = self.first or self.last or self.seated
        return Timing(
            queued=round(self.seated - self.began, 4),
            prefill=round(first - self.seated, 4),
            decode=round(max(0.0, self.last - first), 4),
        )


def _logprob(token: TokenLogprob) -> Logprob:
    return Logprob(token.token, token.logprob, tuple((top.token, top.logprob) for top in token.top_logprobs))
