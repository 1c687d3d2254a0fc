"""The only file that speaks to vLLM: its health, its plan, token counts, streams of tokens.

Knows nothing of people, queues or storage. The one thing it decides is which worker gets a request: the ready one
with the fewest requests in flight. Several workers behind one `Engine` are one engine with the sum of their seats.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from gateway.errors import EngineError, EngineLost
from gateway.settings import Settings

_T = TypeVar("_T")

COUNT_SECONDS = 10.0  # a long prompt takes a tenth of a second
CANNOT_NOW = "The engine cannot take the request just now; ask again in a moment."
MESSAGE_CHARACTERS = 500  # of an error of the engine
_NEVER_SHOWN = re.compile(r"0x[0-9a-fA-F]{4,}|Traceback|(?:^|[\s'\"(])/[\w.-]+/")  # addresses, stacks, paths
HEALTH_SECONDS = 2.0  # a health check that takes longer counts as failed
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


class ChatDelta(msgspec.Struct, frozen=True):
    content: str | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    delta: ChatDelta = ChatDelta()
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None


class Reason(msgspec.Struct, frozen=True):
    message: str = ""
    param: str | None = None


class _Refused(msgspec.Struct, frozen=True):
    error: Reason = Reason()


class _EngineMessage(msgspec.Struct, frozen=True):
    message: str = "the engine gave no reason"


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of vLLM's chat-completions stream, as far as a turn needs it."""

    choices: tuple[ChatChoice, ...] = ()
    usage: Usage | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    error: _EngineMessage | None = None


class _Count(msgspec.Struct):
    count: int


_decode_chunk = msgspec.json.Decoder(ChatChunk).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_decode_refused = msgspec.json.Decoder(_Refused).decode


class Upstream:
    """One open answer of a worker: status, headers, bytes as they arrive."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the network delivers, not split or joined. Raises EngineLost when the connection breaks."""
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except aiohttp.ClientError as error:
            raise EngineLost("The engine stopped in the middle of the answer; ask again in a moment.") from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except aiohttp.ClientError as error:
            raise EngineLost("The engine stopped in the middle of the answer; ask again in a moment.") from error


@dataclass(slots=True, eq=False)
class _Worker:
    url: str
    session: aiohttp.ClientSession
    base: str
    state: EngineState = EngineState.LOADING
    since: float = field(default_factory=time.time)
    seats: int = 0
    in_flight: int = 0
    suspect: asyncio.Event = field(default_factory=asyncio.Event)  # set by a broken stream: look at once


class Engine:
    """All workers as one. Start it, read `model` and `state`, open requests, close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plan_model: ModelFacts | None = None
        self._workers: list[_Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []

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
        return sum(worker.seats for worker in self._workers if worker.state is EngineState.READY)

    # requests -----------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def open(self, path: str, body: bytes, request_id: str) -> AsyncIterator[Upstream]:
        """POST `body` to a worker. Leaving the context before the end aborts the request in the engine."""
        worker = self._pick()
        headers = {"content-type": "application/json", "x-request-id": request_id}
        worker.in_flight += 1
        try:
            try:
                response = await worker.session.post(worker.base + path, data=body, headers=headers)
            except (aiohttp.ClientError, OSError) as error:
                worker.suspect.set()
                raise EngineLost("The engine is gone; it is being restarted. Ask again in a moment.") from error
            try:
                yield Upstream(response)
            except EngineLost:
                worker.suspect.set()
                raise
            finally:
                response.close()
        finally:
            worker.in_flight -= 1

    async def chat(self, body: bytes, request_id: str) -> AsyncGenerator[list[ChatChunk], None]:
        """Stream a chat completion: the events of each network read together, so that a burst costs one step."""
        async with self.open("/v1/chat/completions", body, request_id) as upstream:
            if upstream.status != 200:
                raise _refused(upstream.status, await upstream.read())
            rest = b""
            async for data in upstream.chunks():
                *frames, rest = (rest + data).split(b"\n\n")
                chunks = [_parsed(_decode_chunk, frame[6:]) for frame in frames if frame.startswith(b"data: {")]
                if said := [chunk for chunk in chunks if chunk.error is None]:
                    yield said
                for chunk in chunks:
                    if chunk.error is not None:
                        raise EngineLost(f"The engine broke off: {chunk.error.message}")
                if any(frame == b"data: [DONE]" for frame in frames):
                    return
        raise EngineLost("The engine ended the answer without finishing it; ask again in a moment.")

    async def count(self, body: bytes, request_id: str) -> int:
        """Tokens of a prompt: `body` is vLLM's /tokenize request (model and messages). No seat is needed."""
        try:
            async with asyncio.timeout(COUNT_SECONDS), self.open("/tokenize", body, request_id) as upstream:
                answer = await upstream.read()
                if upstream.status != 200:
                    raise _refused(upstream.status, answer)
                return _parsed(_decode_count, answer).count
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

    def _pick(self) -> _Worker:
        ready = [worker for worker in self._workers if worker.state is EngineState.READY]
        if not ready:
            raise EngineLost("No engine is ready; ask again in a moment.")
        return min(ready, key=lambda worker: worker.in_flight / max(1, worker.seats))

    # health -------------------------------------------------------------------------------------------------------
    async def _watch(self, worker: _Worker) -> None:
        while True:
            healthy = await self._is_healthy(worker)
            if healthy and worker.state is not EngineState.READY:
                await self._learn(worker)
            elif not healthy and worker.state is EngineState.READY:
                self._set(worker, EngineState.LOST)
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

    async def _learn(self, worker: _Worker) -> None:
        """Ask a worker that became healthy what it serves; it is ready only when that is known."""
        try:
            model = await self._ask_model(worker)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError):
            return
        self._plan_model = model
        worker.seats = model.seats
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
            tool_parser=self._settings.tool_parser or plan.tool_parser,
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
        for listener in self._listeners:
            listener()


def _parsed(decode: Callable[[bytes], _T], answer: bytes) -> _T:
    try:
        return decode(answer)
    except ValueError as error:  # msgspec's own kinds and UnicodeDecodeError
        raise EngineError("The engine answered something that is no answer; its log may say why.") from error


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


async def _get(worker: _Worker, path: str) -> bytes:
    async with asyncio.timeout(HEALTH_SECONDS), worker.session.get(worker.base + path) as response:
        response.raise_for_status()
        return await response.read()


def reason_of(body: bytes) -> Reason:
    """Why a worker refused, as it may be told: an empty message when it gave none, or one that leaks its insides."""
    try:
        reason = _decode_refused(body).error
    except ValueError:
        return Reason()
    return Reason("" if _NEVER_SHOWN.search(reason.message) else reason.message[:MESSAGE_CHARACTERS], reason.param)


def _refused(status: int, body: bytes) -> EngineError | EngineLost:
    """An HTTP error of the worker. While it drains it answers 500 to what is new: that is being away, not a bug."""
    if status in (500, 502, 503):
        return EngineLost(CANNOT_NOW)
    reason = reason_of(body).message or "the engine gave no reason"
    return EngineError(f"The engine refused the request ({status}): {reason}")
