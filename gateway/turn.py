"""The flow of one turn: wait for the seat, ask the engine, pass on what it says, give the seat back.

One async generator of a small union of events; knows no HTTP, no Redis and no protocol of any API. Whoever runs it
(`runner.py`) logs the events and ends it; whoever shows it (`api/`) translates them. An engine that goes away in the
middle is waited for, and the same answer goes on from the tokens that were said.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import anyio
import msgspec

from gateway import compaction
from gateway.admission import Place
from gateway.context import Prompt, TurnRequest, build_prompt, formed
from gateway.engine import ChatChunk, Engine, EngineState, ModelFacts
from gateway.errors import ContextLengthExceeded, EngineAway, EngineError, EngineLost
from gateway.events import Compacted, Delta, Finished, Form, Progress, Queued, TurnEvent
from gateway.prompt import Message, Window, current, has_pictures
from gateway.said import Said
from gateway.speech import Speech
from gateway.waited import is_news

RELEASE_SECONDS = 5.0
AWAY_SECONDS = 600.0  # how long an answer waits for an engine that is away
AWAY_PAUSE_SECONDS = 0.2  # between two tries on an engine that is there but takes nothing: it drains
MOST_LOSSES = 3  # engines that may break on one and the same token: the request itself may be what breaks them
_MOST_TAKEN_BACK = 8  # tokens that may have come in one event with the text before them


Seal = Callable[[bytes], str]  # closes what its owner keeps and cannot read


async def run_turn(
    request: TurnRequest, prompt: Prompt | None, place: Place, engine: Engine, said: Said, *, seal: Seal, began: float
) -> AsyncGenerator[TurnEvent, None]:
    """Run one turn to its end. Raises a Refusal when it cannot go on; closing it early aborts it in the engine.

    `said` grows with what is said; when it holds something already, the answer goes on from there, and `prompt` may be
    None. The place is released here, whatever happens. `began` is when it was asked for, on the monotonic clock.
    """
    speech = Speech(said, request.form or None, began=began)
    finished: Finished | None = None
    before = said.counts()["completion_tokens"]
    try:
        async for event in _wait(place, engine):
            yield event
        if request.resumes:
            yield Progress("resuming")
        speech.seated = time.monotonic()
        if request.compact_at is not None and said.compacted is None and not said.begun:
            async with aclosing(_make_short(request, request.compact_at, engine, speech, seal)) as events:
                async for event in events:
                    said.hear(event)
                    yield event
        if said.compacted is not None:
            request, prompt = shortened(request, said), None
        async with aclosing(_speak(request, prompt, engine, speech)) as events:
            async for event in events:
                said.hear(event)
                place.produced = speech.tokens
                yield event
        finished = speech.finish()
        yield finished
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_SECONDS):
            heard, read = speech.tokens + said.unseen, None
            if finished is not None:  # the engine counts tokens without a text, too, as that of the end
                heard = max(heard, finished.completion_tokens - before)
                read = finished.prompt_tokens - finished.cached_tokens
            await place.release(heard, read)


async def _wait(place: Place, engine: Engine) -> AsyncIterator[TurnEvent]:
    """The way to the seat: places, and why nothing moves while no engine is ready."""
    state, told, told_at = EngineState.READY, None, 0.0
    async for waiting in place.wait():
        if waiting.position and engine.state is not state:
            state = engine.state
            if state is not EngineState.READY:
                yield Progress("loading" if state is EngineState.LOADING else "engine_lost")
        if told is None or is_news(waiting, told, time.monotonic() - told_at):
            told, told_at = waiting, time.monotonic()
            yield Queued(waiting.position, waiting.eta_seconds)


async def _make_short(
    request: TurnRequest, compact_at: int, engine: Engine, speech: Speech, seal: Seal
) -> AsyncGenerator[TurnEvent, None]:
    """A context that has grown beyond `compact_at` tokens as one item; nothing where it has not, where there is nothing
    but the question, or where the model writes no summary. A summary that breaks off is written again unseen."""
    context = current(request.items)
    at = compaction.asked(context)
    if not at or (await build_prompt(request, engine, count=True)).tokens <= compact_at:
        return
    yield Progress("compacting")
    summary = Speech(Said(), None, began=time.monotonic())
    most = min(engine.defaults.max_tokens, compact_at // compaction.SHARE_OF_SUMMARY)
    asked = replace(
        request,
        items=compaction.question(context[:at]),
        window=Window(truncate=True),
        sampling=replace(request.sampling, max_tokens=most, temperature=0.0, extra={}),
        form=Form(effort="none"),
    )
    with suppress(ContextLengthExceeded):
        async with aclosing(_speak(asked, None, engine, summary)) as events:
            async for event in events:
                summary.said.hear(event)
                speech.said.unseen = summary.said.tokens
                if isinstance(event, Progress):
                    yield event
    speech.said.unseen, speech.tokens = 0, speech.tokens + summary.tokens
    if text := summary.said.text.strip():
        content, cost = compaction.whole(context, at, text, compact_at), summary.finish()
        sealed = {"type": "compaction", "encrypted_content": seal(compaction.encode(content))}
        yield Compacted(
            compaction.opened(sealed, content), cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens
        )


def shortened(request: TurnRequest, said: Said) -> TurnRequest:
    """The request with what its context was made to, if it was."""
    return request if said.compacted is None else replace(request, items=[*request.items, said.compacted.item])


async def _speak(
    request: TurnRequest, prompt: Prompt | None, engine: Engine, speech: Speech
) -> AsyncGenerator[TurnEvent, None]:
    """What the engine says, to the end of the answer, however often an engine goes away in between."""
    losses, told, away_since, heard = 0, False, time.monotonic(), speech.said.tokens
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
            if speech.said.tokens > heard:
                losses, heard, away_since = 0, speech.said.tokens, time.monotonic()
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
    request: TurnRequest, prompt: Prompt | None, engine: Engine, speech: Speech
) -> AsyncGenerator[TurnEvent, None]:
    """One try: ask for the answer, or for what is still missing of it."""
    said = speech.said
    parsed = _is_parsed(request, said, engine.model)
    speech.begin()
    if said.rest is not None:
        speech.finish_reason = "length" if said.rest.cut else "stop"
        return
    if said.prompt_token_ids and not speech.anew:
        if parsed:
            await _to_a_border(request, speech, engine)
        elif held := await _held_back(request, said, engine):
            yield Delta(held)
        left = _tokens_left(request, said, engine.model)
        if left < 1:
            speech.finish_reason = "length"
            return
        bursts = _go_on(request, said, left, engine, parsed=parsed)
    else:
        if prompt is None or not prompt.certain:
            prompt = await build_prompt(request, engine)
        bursts = engine.chat(_body(request, prompt, engine.model), request.id, request.thread)
    async with aclosing(bursts):
        async for chunks in bursts:
            for event in speech.take(chunks):
                yield event
    if rest := speech.rest():
        yield rest


def _is_parsed(request: TurnRequest, said: Said, model: ModelFacts | None) -> bool:
    """Whether vLLM is to tell apart what the model writes: calls, thoughts. It does so for chats only."""
    return bool(request.form or said.thoughts or (model and model.reasoning_parser))


def _go_on(
    request: TurnRequest, said: Said, left: int, engine: Engine, *, parsed: bool
) -> AsyncGenerator[list[ChatChunk], None]:
    """What follows exactly these tokens. Its parsers read in them whether the model was thinking still.

    Log probabilities are asked of a chat, too: only there tokens that are written alike are told apart.
    """
    ids = [*said.prompt_token_ids, *said.token_ids]
    if not parsed and "logprobs" not in request.sampling.extra:
        return engine.complete(_continuation(request, ids, left), request.id, request.thread)
    body = _chat_continuation(request, ids, left, engine.model)
    return _from_there(engine.chat(body, request.id, request.thread), len(ids))


async def _from_there(
    bursts: AsyncGenerator[list[ChatChunk], None], tokens: int
) -> AsyncGenerator[list[ChatChunk], None]:
    """The bursts of an engine that did begin with our tokens. Raises EngineError when it has read something else."""
    begun = False
    async with aclosing(bursts):
        async for chunks in bursts:
            if not begun:
                begun = True
                if len(chunks[0].prompt_token_ids or ()) != tokens:
                    raise EngineError("This engine cannot go on with an answer that it has begun; ask again.")
            yield chunks


async def _to_a_border(request: TurnRequest, speech: Speech, engine: Engine) -> None:
    """Take back tokens behind what was seen: after one that opens a call, nobody would know it for a call.

    When one token holds the end of the text and the beginning of a call, that end is written again.
    """
    said = speech.said
    thinks = len(said.token_ids) == said.thought_tokens
    last, begin = said.thought if thinks else said.text, None
    for tokens in range(len(said.token_ids), max(0, len(said.token_ids) - _MOST_TAKEN_BACK), -1):
        raw = await engine.text_of(said.token_ids[:tokens], request.id)
        begin = said.begins_in(raw, thinks=thinks) if begin is None else begin
        if 0 <= begin <= len(raw) and last.startswith(raw[begin:]):
            del said.token_ids[tokens:]
            speech.before = tokens
            if thinks:
                said.thought_tokens, speech.seen_thought = tokens, last[len(raw) - begin :]
            else:
                speech.seen = last[len(raw) - begin :]
            return


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


def _continuation(request: TurnRequest, ids: Sequence[int], left: int) -> bytes:
    """The same prompt and answer as token ids: the engine goes on with exactly these, most of them from its cache."""
    return msgspec.json.encode({"prompt": ids, **_asked(request, request.model, left)})


def _chat_continuation(request: TurnRequest, ids: Sequence[int], left: int, model: ModelFacts | None) -> bytes:
    """The same for a chat: vLLM takes the ids in place of the messages, as a decoding stage is given them."""
    there = {"kv_transfer_params": {"prompt_token_ids": ids}, "messages": [Message("user", "")]}
    return msgspec.json.encode({**there, **_asked(request, request.model, left), **formed(request.form, model)})


def _body(request: TurnRequest, prompt: Prompt, model: ModelFacts | None) -> bytes:
    room = model.context_tokens - prompt.tokens if model else request.sampling.max_tokens
    most = max(1, min(request.sampling.max_tokens, room))
    name = request.model or (model.id if model else "")  # asked before it was known
    asked = {"messages": prompt.messages, **_asked(request, name, most), **formed(request.form, model)}
    if has_pictures(prompt.messages):
        asked["return_token_ids"] = False  # nobody can go on from them: they stand for pictures, but do not hold them
    return msgspec.json.encode(asked)


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
