"""The flow of one turn: wait for the seat, ask the engine, pass on what it says, give the seat back.

One async generator of a small union of events; knows no HTTP, no Redis and no protocol of any API. Whoever runs it
(`runner.py`) logs the events and ends it; whoever shows it (`api/`) translates them. An engine that goes away in the
middle is waited for, and the same answer goes on from the tokens that were said.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from gateway.admission import Place
from gateway.engine import ChatChunk, Engine, EngineState, ModelFacts, Usage
from gateway.errors import ContextLengthExceeded, EngineAway, EngineError, EngineLost
from gateway.events import Delta, Finished, Progress, Queued, Sampling, Started, Timing, TurnEvent
from gateway.prompt import (
    Message,
    Window,
    drop_for_budget,
    estimate_tokens,
    first_round,
    most_tokens,
    rounds_of,
    to_messages,
)

RELEASE_SECONDS = 5.0
LEAST_ANSWER_TOKENS = 16  # a prompt that leaves less room than this is too long
_FITTING_TRIES = 4
AWAY_SECONDS = 600.0  # how long an answer waits for an engine that is away
AWAY_PAUSE_SECONDS = 0.2  # between two tries on an engine that is there but takes nothing: it drains
MOST_LOSSES = 3  # engines that may break on one and the same token: the request itself may be what breaks them


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One question with everything the model is to read. `items`: history and input, oldest first."""

    id: str
    person: str
    cache_salt: str
    model: str
    system: str | None
    items: Sequence[Mapping[str, Any]]
    window: Window
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: Sequence[Message]
    tokens: int
    certain: bool  # that it fits: counted by the engine, or far too short not to


async def build_prompt(request: TurnRequest, engine: Engine, *, count: bool = False) -> Prompt:
    """The messages that fit the context. Raises ContextLengthExceeded when they do not and may not be cut.

    Tokens are counted by the engine where it matters: near the limit, or when asked to. A short prompt is only
    estimated, and with no engine ready nothing is refused that might fit after all.
    """
    model = engine.model
    added_tokens = model.added_tokens if model else ()
    rounds = rounds_of(request.items)
    rounds = rounds[first_round(len(rounds) - 1, request.window.rounds) :]
    for _ in range(_FITTING_TRIES):
        messages = _messages(request, rounds, added_tokens)
        if (
            model is not None
            and not count
            and most_tokens(messages) + request.sampling.max_tokens <= model.context_tokens
        ):
            return Prompt(messages, estimate_tokens(messages), certain=True)
        prompt = await _count(request, messages, engine)
        excess = prompt.tokens - _budget(request, model)
        if model is None or excess <= 0 or not request.window.truncate or len(rounds) == 1:
            break
        rounds = rounds[drop_for_budget(_sizes(request, rounds, prompt, added_tokens), excess) :]
    if model is not None and prompt.certain and prompt.tokens > model.context_tokens - LEAST_ANSWER_TOKENS:
        raise ContextLengthExceeded(
            f"The prompt has {prompt.tokens} tokens; this model reads {model.context_tokens}, "
            f'of which {LEAST_ANSWER_TOKENS} are kept for the answer. Shorten it, or send truncation: "auto".',
            param="input",
        )
    return prompt


def _messages(
    request: TurnRequest, rounds: Sequence[Sequence[Mapping[str, Any]]], added_tokens: tuple[str, ...]
) -> list[Message]:
    return to_messages(request.system, [item for r in rounds for item in r], added_tokens)


def _budget(request: TurnRequest, model: ModelFacts | None) -> int:
    """Tokens a cut prompt aims for: room for the whole answer, but never less than half of the context."""
    context = model.context_tokens if model else 0
    return context - min(request.sampling.max_tokens, context // 2)


def _sizes(
    request: TurnRequest, rounds: Sequence[Sequence[Mapping[str, Any]]], prompt: Prompt, added: tuple[str, ...]
) -> list[int]:
    """Tokens of each round, from its share of the estimate and the whole's count."""
    estimates = [estimate_tokens(to_messages(None, r, added)) for r in rounds]
    scale = prompt.tokens / max(1, sum(estimates))
    return [max(1, int(estimate * scale)) for estimate in estimates]


async def _count(request: TurnRequest, messages: list[Message], engine: Engine) -> Prompt:
    if engine.state is EngineState.READY:
        model = request.model or (engine.model.id if engine.model else "")
        body = msgspec.json.encode({"model": model, "messages": messages, "add_generation_prompt": True})
        try:
            return Prompt(messages, await engine.count(body, request.id), certain=True)
        except EngineLost:
            pass  # it has just gone: estimate now, count when the seat is given
    return Prompt(messages, estimate_tokens(messages), certain=False)


@dataclass(slots=True)
class Said:
    """What exists of an answer: a fold over its events, and enough to continue it."""

    prompt_token_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)  # end where `text` ends, never inside a character
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0

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
        elif isinstance(event, Started):
            self.prompt_token_ids = event.prompt_token_ids

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def can_go_on(self) -> bool:
        """Nothing said yet, or every token of it known (a bare engine may not tell them)."""
        return not self.tokens or bool(self.prompt_token_ids and self.token_ids)


async def run_turn(
    request: TurnRequest, prompt: Prompt | None, place: Place, engine: Engine, said: Said
) -> AsyncGenerator[TurnEvent, None]:
    """Run one turn to its end. Raises a Refusal when it cannot go on; closing it early aborts it in the engine.

    `said` grows with what is said; when it holds something already, the answer goes on from there, and `prompt` may be
    None. The place is released here, whatever happens.
    """
    speech = _Speech(said, began=time.monotonic())
    try:
        async for event in _wait(place, engine):
            yield event
        speech.seated = time.monotonic()
        async with aclosing(_speak(request, prompt, engine, speech)) as events:
            async for event in events:
                said.hear(event)
                yield event
        yield speech.finish()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_SECONDS):
            await place.release(speech.tokens)


async def _wait(place: Place, engine: Engine) -> AsyncIterator[TurnEvent]:
    """The way to the seat: places, and why nothing moves while no engine is ready."""
    state, position = EngineState.READY, None
    async for waiting in place.wait():
        if waiting.position and engine.state is not state:
            state = engine.state
            if state is not EngineState.READY:
                yield Progress("loading" if state is EngineState.LOADING else "engine_lost")
        if waiting.position != position:
            position = waiting.position
            yield Queued(position, waiting.eta_seconds)


async def _speak(
    request: TurnRequest, prompt: Prompt | None, engine: Engine, speech: "_Speech"
) -> AsyncGenerator[TurnEvent, None]:
    """What the engine says, to the end of the answer, however often an engine goes away in between."""
    losses, told, away_since, heard = 0, False, time.monotonic(), speech.tokens
    while True:
        try:
            async with aclosing(_ask(request, prompt, engine, speech)) as events:
                async for event in events:
                    if told:
                        told = False
                        yield Progress("resuming")
                    yield event
            return
        except EngineLost as lost:
            if speech.tokens > heard:
                losses, heard, away_since = 0, speech.tokens, time.monotonic()
            losses += not isinstance(lost, EngineAway)
            if losses >= MOST_LOSSES or not speech.said.can_go_on or time.monotonic() - away_since > AWAY_SECONDS:
                raise
            if not told:
                told = True
                yield Progress("engine_lost")
            await _until_back(engine, lost, away_since + AWAY_SECONDS)


async def _until_back(engine: Engine, lost: EngineLost, deadline: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            await asyncio.sleep(AWAY_PAUSE_SECONDS)
            await engine.until_ready()
    except TimeoutError:
        raise lost from None


async def _ask(
    request: TurnRequest, prompt: Prompt | None, engine: Engine, speech: "_Speech"
) -> AsyncGenerator[TurnEvent, None]:
    """One try: ask for the answer, or for what is still missing of it."""
    said = speech.said
    speech.begin()
    if said.prompt_token_ids:
        left = _tokens_left(request, said, engine.model)
        if held := await _held_back(request, said, engine):
            yield Delta(held)
        if left < 1:
            speech.finish_reason = "length"
            return
        bursts = engine.complete(_continuation(request, said, left), request.id)
    else:
        if prompt is None or not prompt.certain:
            prompt = await build_prompt(request, engine)
        bursts = engine.chat(_body(request, prompt, engine.model), request.id)
    async with aclosing(bursts):
        async for chunks in bursts:
            for event in speech.take(chunks):
                yield event


async def _held_back(request: TurnRequest, said: Said, engine: Engine) -> str:
    """Text of tokens that were said, but kept back by the engine: it might have become a stop string."""
    if not said.token_ids or "stop" not in request.sampling.extra:
        return ""
    whole = await engine.text_of(said.token_ids, request.id)
    return whole.removeprefix(said.text) if whole.startswith(said.text) else ""


def _tokens_left(request: TurnRequest, said: Said, model: ModelFacts | None) -> int:
    """How many tokens the answer may still have. Raises EngineError when another model is served now."""
    if model is not None and request.model and model.id != request.model:
        raise EngineError(f"The answer was begun by {request.model}; {model.id} is served now. Ask again.")
    room = model.context_tokens - len(said.prompt_token_ids) if model else request.sampling.max_tokens
    return min(request.sampling.max_tokens, room) - len(said.token_ids)


def _continuation(request: TurnRequest, said: Said, left: int) -> bytes:
    """The same prompt and answer as token ids: the engine goes on with exactly these, most of them from its cache."""
    prompt = [*said.prompt_token_ids, *said.token_ids]
    return msgspec.json.encode({"prompt": prompt, **_asked(request, request.model, left)})


def _body(request: TurnRequest, prompt: Prompt, model: ModelFacts | None) -> bytes:
    room = model.context_tokens - prompt.tokens if model else request.sampling.max_tokens
    most = max(1, min(request.sampling.max_tokens, room))
    name = request.model or (model.id if model else "")  # asked before it was known
    return msgspec.json.encode({"messages": prompt.messages, **_asked(request, name, most)})


def _asked(request: TurnRequest, model: str, max_tokens: int) -> dict[str, Any]:
    sampling = request.sampling
    return {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "cache_salt": request.cache_salt,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        **sampling.extra,
    }


@dataclass(slots=True)
class _Speech:
    """What the engine has said in this run, and when. `said` is the whole answer, earlier runs included."""

    said: Said
    began: float
    seated: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    before: int = 0  # tokens of the answer that the engine was given to go on from
    finish_reason: str | None = None
    usage: Usage | None = None
    held: list[int] = field(default_factory=list)  # ids that end inside a character; kept back until its text comes

    def begin(self) -> None:
        """A new try: ids whose text never came belong to nothing."""
        self.held.clear()
        self.before = len(self.said.token_ids)
        self.usage = self.finish_reason = None

    def take(self, chunks: Sequence[ChatChunk]) -> list[TurnEvent]:
        """The events of one burst: at most one Started and one Delta, however many tokens came together."""
        events: list[TurnEvent] = []
        text = ""
        ids: list[int] = []
        for chunk in chunks:
            if chunk.prompt_token_ids is not None and not self.said.prompt_token_ids:
                events.append(Started(chunk.prompt_token_ids))
            if chunk.usage is not None:
                self.usage = chunk.usage
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                self.held.extend(choice.token_ids or ())
                if content := choice.delta.content or choice.text:
                    text += content
                    ids += self.held
                    self.held.clear()
        if text:
            self._note(len(ids) or 1)
            events.append(Delta(text, tuple(ids)))
        return events

    def _note(self, tokens: int) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens += tokens

    def finish(self) -> Finished:
        usage = self.usage or Usage(self.before + len(self.said.prompt_token_ids), self.said.tokens - self.before)
        cut = self.finish_reason == "length"
        prompt_tokens = usage.prompt_tokens - self.before
        return Finished(
            status="incomplete" if cut else "completed",
            reason="max_output_tokens" if cut else None,
            prompt_tokens=prompt_tokens,
            cached_tokens=min(usage.cached_tokens, prompt_tokens),
            completion_tokens=self.before + (usage.completion_tokens or 0),
            timing=self.timing(),
        )

    def timing(self) -> Timing:
        first = self.first or self.last or self.seated
        return Timing(
            queued=round(self.seated - self.began, 4),
            prefill=round(first - self.seated, 4),
            decode=round(max(0.0, self.last - first), 4),
        )


def answer_item(text: str, complete: bool) -> dict[str, Any]:
    """The answer as it is stored: compact, in the Responses API's shape but for the text as a plain string."""
    return {
        "type": "message",
        "role": "assistant",
        "status": "completed" if complete else "incomplete",
        "content": text,
    }
