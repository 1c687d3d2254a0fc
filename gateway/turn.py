"""The flow of one turn: wait for the seat, ask the engine, pass on what it says, give the seat back.

One async generator of a small union of events; knows no HTTP, no Redis and no protocol of any API. Whoever runs it
(`runner.py`) logs the events and ends it; whoever shows it (`api/`) translates them.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import msgspec

from gateway.admission import Place
from gateway.engine import ChatChunk, Engine, EngineState, ModelFacts, Usage
from gateway.errors import ContextLengthExceeded, EngineLost
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


# Events. Compact on the wire of the log: arrays, tagged by one letter.
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


TurnEvent = Queued | Progress | Started | Delta | Finished

encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(TurnEvent).decode


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the engine is asked for; every value is effective, nothing is left to the engine's own defaults."""

    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    extra: Mapping[str, Any] = field(default_factory=dict)  # checked by the door: seed, stop, top_k, min_p, penalties


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


async def run_turn(
    request: TurnRequest, prompt: Prompt, place: Place, engine: Engine
) -> AsyncGenerator[TurnEvent, None]:
    """Run one turn to its end. Raises a Refusal when it cannot go on; closing it early aborts it in the engine.

    The place is released here, whatever happens.
    """
    produced = _Produced(began=time.monotonic())
    try:
        async for event in _wait(place, engine):
            yield event
        produced.seated = time.monotonic()
        if not prompt.certain:
            prompt = await build_prompt(request, engine)
        async with aclosing(engine.chat(_body(request, prompt, engine.model), request.id)) as bursts:
            async for chunks in bursts:
                for event in produced.take(chunks):
                    yield event
        yield produced.finish()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_SECONDS):
            await place.release(produced.tokens)


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


def _body(request: TurnRequest, prompt: Prompt, model: ModelFacts | None) -> bytes:
    sampling = request.sampling
    room = model.context_tokens - prompt.tokens if model else sampling.max_tokens
    return msgspec.json.encode(
        {
            "model": request.model or (model.id if model else ""),  # asked before it was known
            "messages": prompt.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": request.cache_salt,
            "max_tokens": max(1, min(sampling.max_tokens, room)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "repetition_penalty": sampling.repetition_penalty,
            **sampling.extra,
        }
    )


@dataclass(slots=True)
class _Produced:
    """What the engine has said so far, and when."""

    began: float
    seated: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    held: list[int] = field(default_factory=list)  # ids that end inside a character; kept back until its text comes

    def take(self, chunks: Sequence[ChatChunk]) -> list[TurnEvent]:
        """The events of one burst: at most one Started and one Delta, however many tokens came together."""
        events: list[TurnEvent] = []
        text = ""
        ids: list[int] = []
        for chunk in chunks:
            if chunk.prompt_token_ids is not None:
                events.append(Started(chunk.prompt_token_ids))
            if chunk.usage is not None:
                self.usage = chunk.usage
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                self.held.extend(choice.token_ids or ())
                if choice.delta.content:
                    text += choice.delta.content
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
        usage = self.usage or Usage(completion_tokens=self.tokens)
        cut = self.finish_reason == "length"
        return Finished(
            status="incomplete" if cut else "completed",
            reason="max_output_tokens" if cut else None,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens or self.tokens,
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
