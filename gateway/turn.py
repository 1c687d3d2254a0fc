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
from gateway.calls import Kept
from gateway.engine import ChatChoice, ChatChunk, Engine, EngineState, ModelFacts, Usage
from gateway.errors import BadRequest, ContextLengthExceeded, EngineAway, EngineError, EngineLost
from gateway.events import Call, Delta, Finished, Form, Progress, Queued, Rest, Sampling, Started, Timing, TurnEvent
from gateway.prompt import (
    Message,
    Window,
    drop_for_budget,
    estimate_tokens,
    first_round,
    harmless,
    most_tokens,
    rounds_of,
    to_messages,
    unknown_output,
)

RELEASE_SECONDS = 5.0
LEAST_ANSWER_TOKENS = 16  # a prompt that leaves less room than this is too long
_FITTING_TRIES = 4
_MOST_TAKEN_BACK = 8  # tokens that may have come in one event with the text before them
AWAY_SECONDS = 600.0  # how long an answer waits for an engine that is away
AWAY_PAUSE_SECONDS = 0.2  # between two tries on an engine that is there but takes nothing: it drains
PLAIN = Form()
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
    form: Form = PLAIN


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
        messages, tools = _messages(request, rounds, added_tokens), request.form.tools
        if (
            model is not None
            and not count
            and most_tokens(messages, tools) + request.sampling.max_tokens <= model.context_tokens
        ):
            return Prompt(messages, estimate_tokens(messages, tools), certain=True)
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
        tools = {"tools": _tools(request.form, engine.model)} if request.form.tools else {}
        body = {"model": model, "messages": messages, "add_generation_prompt": True, **tools}
        try:
            return Prompt(messages, await engine.count(msgspec.json.encode(body), request.id), certain=True)
        except EngineLost:
            pass  # it has just gone: estimate now, count when the seat is given
    return Prompt(messages, estimate_tokens(messages, request.form.tools), certain=False)


def check_outputs(items: Sequence[Mapping[str, Any]], start: int) -> None:
    """Raises BadRequest when from `start` on, where the input begins, something is the output of an unknown call."""
    if (index := unknown_output(items, start)) is not None:
        raise BadRequest(
            f"`{items[index]['call_id'][:80]}` is the `call_id` of no call: neither the input nor what came before has "
            "a `function_call` with it.",
            param=f"input[{index - start}].call_id",
        )


@dataclass(slots=True)
class Said:
    """What exists of an answer: a fold over its events, and enough to continue it."""

    prompt_token_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)  # end where `text` ends, never inside a character
    pieces: list[str] = field(default_factory=list)
    rest: Rest | None = None  # the end of the answer: the engine has nothing more to say
    tokens: int = 0
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
        elif isinstance(event, Started):
            self.prompt_token_ids = event.prompt_token_ids
        elif isinstance(event, Rest):
            self.rest = event
            self.tokens += event.tokens

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def can_go_on(self) -> bool:
        """Nothing said yet, or every token of it known (a bare engine may not tell them)."""
        return not self.tokens or self.rest is not None or bool(self.prompt_token_ids and self.token_ids)

    def output(self, complete: bool) -> list[dict[str, Any]]:
        """The items of the answer as they are stored; the last message of one that broke off is incomplete."""
        items: list[dict[str, Any]] = []
        text = self.text
        for part in self.rest.parts if self.rest else ():
            if isinstance(part, str):
                text += part
                continue
            if text:
                items.append(answer_item(text, complete=True))
            items.append(call_item(part))
            text = ""
        if text or (complete and not items):
            items.append(answer_item(text, complete))
        return items


async def run_turn(
    request: TurnRequest, prompt: Prompt | None, place: Place, engine: Engine, said: Said
) -> AsyncGenerator[TurnEvent, None]:
    """Run one turn to its end. Raises a Refusal when it cannot go on; closing it early aborts it in the engine.

    `said` grows with what is said; when it holds something already, the answer goes on from there, and `prompt` may be
    None. The place is released here, whatever happens.
    """
    speech = _Speech(said, request.form or None, began=time.monotonic())
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
            await place.release(speech.tokens + said.unseen)


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
    request: TurnRequest, prompt: Prompt | None, engine: Engine, speech: "_Speech"
) -> AsyncGenerator[TurnEvent, None]:
    """One try: ask for the answer, or for what is still missing of it."""
    said = speech.said
    speech.begin()
    if said.rest is not None:
        speech.finish_reason = "length" if said.rest.cut else "stop"
        return
    if said.prompt_token_ids and not speech.anew:
        if request.form:
            await _to_a_border(request, speech, engine)
        elif held := await _held_back(request, said, engine):
            yield Delta(held)
        left = _tokens_left(request, said, engine.model)
        if left < 1:
            speech.finish_reason = "length"
            return
        bursts = _go_on(request, said, left, engine)
    else:
        if prompt is None or not prompt.certain:
            prompt = await build_prompt(request, engine)
        bursts = engine.chat(_body(request, prompt, engine.model), request.id)
    async with aclosing(bursts):
        async for chunks in bursts:
            for event in speech.take(chunks):
                yield event
    if rest := speech.rest():
        yield rest


def _go_on(request: TurnRequest, said: Said, left: int, engine: Engine) -> AsyncGenerator[list[ChatChunk], None]:
    """What follows exactly these tokens. With tools it is asked for as a chat: only there vLLM reads calls."""
    ids = [*said.prompt_token_ids, *said.token_ids]
    if not request.form:
        return engine.complete(_continuation(request, ids, left), request.id)
    return _from_there(engine.chat(_chat_continuation(request, ids, left, engine.model), request.id), len(ids))


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
                    raise EngineError("This engine cannot go on with an answer that may call tools; ask again.")
            yield chunks


async def _to_a_border(request: TurnRequest, speech: "_Speech", engine: Engine) -> None:
    """Take back tokens behind the text that was seen: after one that opens a call, nobody would know it for a call.

    When one token holds the end of the text and the beginning of a call, that end is written again.
    """
    said = speech.said
    for tokens in range(len(said.token_ids), max(0, len(said.token_ids) - _MOST_TAKEN_BACK), -1):
        text = await engine.text_of(said.token_ids[:tokens], request.id)
        if said.text.startswith(text):
            del said.token_ids[tokens:]
            speech.before, speech.seen = tokens, said.text[len(text) :]
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
    return msgspec.json.encode({**there, **_asked(request, request.model, left), **_formed(request.form, model)})


def _body(request: TurnRequest, prompt: Prompt, model: ModelFacts | None) -> bytes:
    room = model.context_tokens - prompt.tokens if model else request.sampling.max_tokens
    most = max(1, min(request.sampling.max_tokens, room))
    name = request.model or (model.id if model else "")  # asked before it was known
    return msgspec.json.encode(
        {"messages": prompt.messages, **_asked(request, name, most), **_formed(request.form, model)}
    )


def _formed(form: Form, model: ModelFacts | None) -> dict[str, Any]:
    """What a chat is asked for beside text."""
    asked: dict[str, Any] = {}
    if form.tools:
        asked = {"tools": _tools(form, model), "tool_choice": form.choice, "parallel_tool_calls": form.parallel}
    return asked if form.format is None else {**asked, "response_format": form.format}


def _tools(form: Form, model: ModelFacts | None) -> list[Any]:
    return [harmless(tool, model.added_tokens if model else ()) for tool in form.tools]


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
    kept: Kept = field(default_factory=Kept)  # what is not shown before the answer is whole
    seen: str = ""  # what was seen already of an answer that is written again, as far as it has not come yet

    def begin(self) -> None:
        """A new try: ids whose text never came belong to nothing."""
        self.held.clear()
        self.kept.clear()
        self.tokens, self.said.unseen = self.tokens + self.said.unseen, 0
        self.seen = self.said.text if self.form and self.form.format else ""
        self.before = 0 if self.anew else len(self.said.token_ids)
        self.usage = self.finish_reason = None

    @property
    def anew(self) -> bool:
        """The answer is written again from its beginning: a grammar of JSON cannot be taken up in the middle."""
        return self.form is not None and (self.form.format is not None or not self.said.token_ids)

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
                content = choice.delta.content or choice.text
                if self.form is not None:
                    content = self._keep(self.form, choice, content or "", begun=bool(text or self.said.tokens))
                if content:
                    text += content
                    ids += self.held
                    self.held.clear()
        if text:
            self._note(len(ids) or 1)
            events.append(Delta(text, tuple(ids)))
        if self.form is not None:
            self.said.unseen = len(self.held)
        return events

    def _keep(self, form: Form, choice: ChatChoice, content: str, *, begun: bool) -> str:
        """What may be shown at once: text before the first call, but not the blank that often stands before one."""
        if self.seen and content:
            content = self._again(content)
        calls = choice.delta.tool_calls or ()
        if calls or self.kept.calls or (form.format is not None and form.at_once):
            self._note(0)
            self.kept.say(content)
            self.kept.call(calls)
            return ""
        content = self.kept.text + content
        self.kept.clear()
        if not begun and not content.strip():
            self.kept.say(content)
            return ""
        return content

    def _again(self, content: str) -> str:
        """What is new of what is written again. Raises EngineError where it is not what was seen."""
        known = min(len(self.seen), len(content))
        if content[:known] != self.seen[:known]:
            message = "The engine was lost in the middle of the answer, and writes another one now; ask again."
            raise EngineError(message, code="engine_lost")
        self.seen = self.seen[known:]
        self.held.clear()
        return content[known:]

    def rest(self) -> Rest | None:
        """What was kept, once the engine has ended."""
        if self.form is None or not self.kept.parts:
            return None
        tokens, self.said.unseen = max(1, len(self.held)), 0
        self._note(tokens)
        return self.kept.rest(self.form, tokens, self.finish_reason == "length")

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


def call_item(call: Call) -> dict[str, Any]:
    status = "completed" if call.complete else "incomplete"
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def answer_item(text: str, complete: bool) -> dict[str, Any]:
    """The answer as it is stored: compact, in the Responses API's shape but for the text as a plain string."""
    return {
        "type": "message",
        "role": "assistant",
        "status": "completed" if complete else "incomplete",
        "content": text,
    }
