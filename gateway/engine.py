"""The only file that speaks to vLLM: its health, its plan, token counts, streams of tokens.

Knows nothing of people, queues or storage. The one thing it decides is which worker gets a request: the ready one
with the fewest requests in flight. Several workers behind one `Engine` are one engine with the sum of their seats.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from gateway.errors import EngineAway, EngineError, EngineLost
from gateway.refused import Reason, broke_off, refused
from gateway.settings import Settings

_T = TypeVar("_T")

COUNT_SECONDS = 10.0  # a long prompt takes a tenth of a second
HEALTH_SECONDS = 2.0  # a health check that takes longer counts as failed
SILENCE_SECONDS = 10.0  # every running answer silent for so long: it hangs (the longest pause measured was 4.3 s)
PROBE_SECONDS = 5.0  # one token, from an engine that hung
POLL_READY_SECONDS = 1.0
POLL_LOADING_SECONDS = 0.25


class EngineState(StrEnum):
    LOADING = "loading"  # not one worker has answered yet
    READY = "ready"
    LOST = "lost"  # one was ready and is gone


@dataclass(frozen=True, slots=True)
class Defaults:
    """Generation settings of a request that sets none."""

    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the gateway must know of the served model; from the worker's plan, or asked of a bare vLLM."""

    id: str
    context_tokens: int
    seats: int
    defaults: Defaults = Defaults()
    added_tokens: tuple[str, ...] = ()  # control tokens of its tokenizer; empty when unknown
    tool_parser: str | None = None
    reasoning_parser: str | None = None  # it thinks before it answers, and its thoughts are told apart
    thinking_switch: str | None = None  # the variable of its chat template that turns thinking off
    demo: bool = False
    vision: bool = False
    kv_tokens: int | None = None


class _PlanModel(msgspec.Struct):
    id: str
    demo: bool = False


class _PlanDefaults(msgspec.Struct):
    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1


class _Plan(msgspec.Struct):
    model: _PlanModel
    context_tokens: int
    seats: int
    kv_tokens: int | None = None
    added_tokens: tuple[str, ...] = ()
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    thinking_switch: str | None = None
    vision: bool = False
    generation_defaults: _PlanDefaults = msgspec.field(default_factory=_PlanDefaults)


class _ServedModel(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ServedModels(msgspec.Struct):
    data: list[_ServedModel]


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return details.cached_tokens or 0 if details else 0


class FunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a call of a tool: its id and name at first, then its arguments bit by bit."""

    index: int = 0
    id: str | None = None
    function: FunctionDelta | None = None


class ChatDelta(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: tuple[CallDelta, ...] | None = None
    reasoning: str | None = None


class TopLogprob(msgspec.Struct, frozen=True):
    token: str = ""
    logprob: float = -9999.0


class TokenLogprob(TopLogprob, frozen=True):
    top_logprobs: tuple[TopLogprob, ...] = ()


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    content: tuple[TokenLogprob, ...] | None = None  # one of each token id of the event


class ChatChoice(msgspec.Struct, frozen=True):
    delta: ChatDelta = ChatDelta()
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    text: str | None = None  # on /v1/completions, instead of the delta
    logprobs: ChoiceLogprobs | None = None  # of a chat; its bytes are those of its text


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of vLLM's chat-completions stream, as far as a turn needs it."""

    choices: tuple[ChatChoice, ...] = ()
    usage: Usage | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    error: Reason | None = None


class _Count(msgspec.Struct):
    count: int


class _Text(msgspec.Struct):
    prompt: str


_decode_chunk = msgspec.json.Decoder(ChatChunk).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_decode_text = msgspec.json.Decoder(_Text).decode


class Upstream:
    """One open answer of a worker: status, headers, bytes as they arrive."""

    def __init__(self, response: aiohttp.ClientResponse, worker: "_Worker") -> None:
        self._response = response
        self._worker = worker
        self.speaks = False
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the network delivers, not split or joined. Raises EngineLost when the connection breaks."""
        content, worker, clock = self._response.content, self._worker, asyncio.get_running_loop().time
        try:
            while chunk := await content.readany():
                worker.heard, self.speaks = clock(), True
                yield chunk
        except aiohttp.ClientError as error:
            raise EngineLost("The engine stopped in the middle of the answer; ask again in a moment.") from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except aiohttp.ClientError as error:
            raise EngineLost("The engine stopped in the middle of the answer; ask again in a moment.") from error

    def break_off(self) -> None:
        """Whoever reads it gets EngineLost."""
        self._response.close()


@dataclass(slots=True, eq=False)
class _Worker:
    url: str
    session: aiohttp.ClientSession
    base: str
    state: EngineState = EngineState.LOADING
    since: float = field(default_factory=time.time)
    seats: int = 0
    kv_tokens: int | None = None
    in_flight: int = 0
    unanswered: set[asyncio.Timeout] = field(default_factory=set)  # of requests that have no status yet
    streams: set[Upstream] = field(default_factory=set)
    heard: float = 0.0  # when one of its streams last said something (the loop's clock)
    hung: bool = False  # silent though it says it is healthy: it must show that it can speak
    suspect: asyncio.Event = field(default_factory=asyncio.Event)  # set by a broken stream: look at once


class Engine:
    """All workers as one. Start it, read `model` and `state`, open requests, close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plan_model: ModelFacts | None = None
        self._workers: list[_Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()  # set and replaced at every change

    # life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        for url in self._settings.worker_urls:
            self._workers.append(_connect(url))
        self._tasks = [asyncio.create_task(self._watch(worker)) for worker in self._workers]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.session.close()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the state or the seats of a worker change."""
        self._listeners.append(listener)

    async def until_ready(self) -> None:
        while self.state is not EngineState.READY:
            await self._changed.wait()

    # what is known ------------------------------------------------------------------------------------------------
    @property
    def model(self) -> ModelFacts | None:
        """The served model; before the engine has loaded, from the plan file when there is one."""
        if self._plan_model is None and self._settings.plan_file is not None:
            self._plan_model = self._read_plan_file(self._settings.plan_file)
        return self._plan_model

    @property
    def defaults(self) -> Defaults:
        """Generation settings of a request that sets none, also while the model is not known yet."""
        return self.model.defaults if self.model else self._defaults(_PlanDefaults())

    @property
    def state(self) -> EngineState:
        states = {worker.state for worker in self._workers}
        return next((s for s in (EngineState.READY, EngineState.LOST) if s in states), EngineState.LOADING)

    @property
    def since(self) -> float:
        """Unix time of the last change of state."""
        return max((worker.since for worker in self._workers if worker.state is self.state), default=0.0)

    @property
    def seats(self) -> int:
        """Requests that may be in flight now: the seats of the workers that are ready."""
        return sum(worker.seats for worker in self._ready())

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the caches of the ready workers hold together; None where one does not tell."""
        each = [worker.kv_tokens for worker in self._ready()]
        return None if None in each else sum(filter(None, each))

    def _ready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.state is EngineState.READY]

    # requests -----------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def open(self, path: str, body: bytes, request_id: str, thread: str = "") -> AsyncIterator[Upstream]:
        """POST `body` to a worker. Leaving the context before the end aborts the request in the engine.

        `thread`: the conversation; while its worker has a seat, it goes to that one, whose cache knows what was said.
        """
        worker = self._pick(thread)
        headers = {"content-type": "application/json", "x-request-id": request_id}
        worker.in_flight += 1
        try:
            try:
                async with asyncio.timeout(None) as deadline:
                    worker.unanswered.add(deadline)
                    response = await worker.session.post(worker.base + path, data=body, headers=headers)
            except TimeoutError as error:
                raise EngineLost("The engine does not answer; ask again in a moment.") from error
            except (aiohttp.ClientError, OSError) as error:
                worker.suspect.set()
                kind = EngineAway if isinstance(error, aiohttp.ClientConnectorError) else EngineLost
                raise kind("The engine is gone; it is being restarted. Ask again in a moment.") from error
            finally:
                worker.unanswered.discard(deadline)
            upstream = Upstream(response, worker)
            worker.streams.add(upstream)
            try:
                yield upstream
            except EngineLost:
                worker.suspect.set()
                raise
            finally:
                worker.streams.discard(upstream)
                response.close()
        finally:
            worker.in_flight -= 1

    def chat(self, body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
        """Stream a chat completion: the events of each network read together, so that a burst costs one step."""
        return self._stream("/v1/chat/completions", body, request_id, thread)

    def complete(self, body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
        """Stream what follows a prompt that may be token ids."""
        return self._stream("/v1/completions", body, request_id, thread)

    async def _stream(
        self, path: str, body: bytes, request_id: str, thread: str
    ) -> AsyncGenerator[list[ChatChunk], None]:
        async with self.open(path, body, request_id, thread) as upstream:
            if upstream.status != 200:
                raise refused(upstream.status, await upstream.read())
            rest = b""
            async for data in upstream.chunks():
                *frames, rest = (rest + data).split(b"\n\n")
                chunks = [_parsed(_decode_chunk, frame[6:]) for frame in frames if frame.startswith(b"data: {")]
                if said := [chunk for chunk in chunks if chunk.error is None]:
                    yield said
                for chunk in chunks:
                    if chunk.error is not None:
                        raise broke_off(chunk.error)
                if any(frame == b"data: [DONE]" for frame in frames):
                    return
        raise EngineLost("The engine ended the answer without finishing it; ask again in a moment.")

    async def count(self, body: bytes, request_id: str) -> int:
        """Tokens of a prompt: `body` is vLLM's /tokenize request (model and messages). No seat is needed."""
        return _parsed(_decode_count, await self._answer("/tokenize", body, request_id)).count

    async def text_of(self, token_ids: Sequence[int], request_id: str) -> str:
        """The text that these tokens are."""
        body = msgspec.json.encode({"model": self.model.id if self.model else "", "tokens": token_ids})
        return _parsed(_decode_text, await self._answer("/detokenize", body, request_id)).prompt

    async def _answer(self, path: str, body: bytes, request_id: str) -> bytes:
        try:
            async with asyncio.timeout(COUNT_SECONDS), self.open(path, body, request_id) as upstream:
                answer = await upstream.read()
                if upstream.status != 200:
                    raise refused(upstream.status, answer)
                return answer
        except TimeoutError:
            raise EngineLost("The engine does not answer; ask again in a moment.") from None

    async def get(self, path: str) -> bytes:
        """GET `path` of the first worker that answers, e.g. its /metrics."""
        for worker in sorted(self._workers, key=lambda w: w.state is not EngineState.READY):
            try:
                return await _get(worker, path)
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
        raise EngineLost("No worker answers; see `deskmate status`.")

    def _pick(self, thread: str) -> _Worker:
        ready = self._ready()
        if not ready:
            raise EngineAway("No engine is ready; ask again in a moment.")
        if thread and len(ready) > 1:
            own = max(ready, key=lambda worker: _rank(thread, worker.url))
            if own.in_flight < own.seats:
                return own
        return min(ready, key=lambda worker: worker.in_flight / max(1, worker.seats))

    # health -------------------------------------------------------------------------------------------------------
    async def _watch(self, worker: _Worker) -> None:
        while True:
            healthy = await self._is_healthy(worker) and not self._hangs(worker)
            if healthy and worker.state is not EngineState.READY:
                await self._learn(worker)
            elif not healthy and worker.state is EngineState.READY:
                self._lose(worker)
            worker.suspect.clear()
            pause = POLL_READY_SECONDS if worker.state is EngineState.READY else POLL_LOADING_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await worker.suspect.wait()
            except TimeoutError:
                pass

    async def _is_healthy(self, worker: _Worker) -> bool:
        try:
            await _get(worker, "/health")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return True

    def _hangs(self, worker: _Worker) -> bool:
        """True when all its running answers have been silent for long: one that is only preempted is not alone."""
        speaking = any(upstream.speaks for upstream in worker.streams)
        worker.hung = worker.hung or (speaking and asyncio.get_running_loop().time() - worker.heard > SILENCE_SECONDS)
        return worker.hung and worker.state is EngineState.READY

    def _lose(self, worker: _Worker) -> None:
        """Whoever still waits for its words hears that none will come."""
        self._set(worker, EngineState.LOST)
        for upstream in list(worker.streams):
            upstream.break_off()
        for deadline in list(worker.unanswered):
            deadline.reschedule(asyncio.get_running_loop().time())

    async def _learn(self, worker: _Worker) -> None:
        """Ask a worker that became healthy what it serves; it is ready only when that is known."""
        try:
            model = await self._ask_model(worker)
            if worker.hung:
                await _speak(worker, model.id)
                worker.hung = False
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError):
            return
        self._plan_model = model
        worker.seats, worker.kv_tokens = model.seats, model.kv_tokens
        self._set(worker, EngineState.READY)

    async def _ask_model(self, worker: _Worker) -> ModelFacts:
        try:
            return self._facts(msgspec.json.decode(await _get(worker, "/deskmate/plan"), type=_Plan))
        except aiohttp.ClientResponseError as error:
            if error.status != 404:
                raise
        served = msgspec.json.decode(await _get(worker, "/v1/models"), type=_ServedModels).data[0]
        context = served.max_model_len or self._settings.context_tokens or 4096
        return self._facts(_Plan(_PlanModel(served.id), context, self._settings.seats))

    def _read_plan_file(self, path: Path) -> ModelFacts | None:
        try:
            return self._facts(msgspec.json.decode(path.read_bytes(), type=_Plan))
        except (OSError, ValueError):
            return None  # not written yet, or just being replaced

    def _facts(self, plan: _Plan) -> ModelFacts:
        """The plan with our settings over it: a setting that is given wins."""
        return ModelFacts(
            id=plan.model.id,
            context_tokens=plan.context_tokens,
            seats=plan.seats,
            defaults=self._defaults(plan.generation_defaults),
            added_tokens=plan.added_tokens,
            tool_parser=_parser(self._settings.tool_parser or plan.tool_parser),
            reasoning_parser=_parser(self._settings.reasoning_parser or plan.reasoning_parser),
            thinking_switch=plan.thinking_switch,
            demo=plan.model.demo,
            vision=plan.vision,
            kv_tokens=plan.kv_tokens,
        )

    def _defaults(self, theirs: _PlanDefaults) -> Defaults:
        ours = self._settings
        return Defaults(
            max_tokens=_given(ours.max_tokens, theirs.max_tokens),
            temperature=_given(ours.temperature, theirs.temperature),
            top_p=_given(ours.top_p, theirs.top_p),
            repetition_penalty=_given(ours.repetition_penalty, theirs.repetition_penalty),
        )

    def _set(self, worker: _Worker, state: EngineState) -> None:
        worker.state = state
        worker.since = time.time()
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener()


def _parsed(decode: Callable[[bytes], _T], answer: bytes) -> _T:
    try:
        return decode(answer)
    except ValueError as error:  # msgspec's own kinds and UnicodeDecodeError
        raise EngineError("The engine answered something that is no answer; its log may say why.") from error


def _parser(name: str | None) -> str | None:
    return None if name == "none" else name


def _given(setting: _T | None, otherwise: _T) -> _T:
    return otherwise if setting is None else setting


def _connect(url: str) -> _Worker:
    if url.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path=url.removeprefix("unix:"), limit=0)
        base = "http://worker"
    else:
        connector = aiohttp.TCPConnector(limit=0)
        base = url.rstrip("/")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False, trust_env=False)
    return _Worker(url, session, base)


def _rank(thread: str, worker: str) -> bytes:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): all gateways choose alike, and nobody keeps a list."""
    return hashlib.blake2b(f"{thread} {worker}".encode(), digest_size=8).digest()


async def _get(worker: _Worker, path: str) -> bytes:
    async with asyncio.timeout(HEALTH_SECONDS), worker.session.get(worker.base + path) as response:
        response.raise_for_status()
        return await response.read()


async def _speak(worker: _Worker, model: str) -> None:
    """One token: shows that the engine behind the server is alive. Raises what a health check may raise."""
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    async with (
        asyncio.timeout(PROBE_SECONDS),
        worker.session.post(worker.base + "/v1/completions", json=body) as answer,
    ):
        answer.raise_for_status()
        await answer.read()
