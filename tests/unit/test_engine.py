"""The engine client against a scripted worker on real sockets: streams, faults, learning, several workers."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.engine import ChatChunk, Defaults, Engine, EngineState
from gateway.errors import EngineError, EngineLost, PromptRefused, Refusal
from gateway.refused import reason_of
from gateway.settings import Settings
from tests.fake_worker import SPECIAL, FakeWorker, answer, chat_ids, default_plan
from tests.listening import stop_listening

MESSAGES = [{"role": "user", "content": "Hello 你好 🙂"}]


def settings(*workers: FakeWorker | str, **more: Any) -> Settings:
    urls = tuple(worker if isinstance(worker, str) else worker.url for worker in workers)
    return Settings(redis_url="unix:///nowhere", secret_file=Path("/nowhere"), worker_urls=urls, **more)


async def until(engine: Engine, state: EngineState, seats: int | None = None) -> None:
    changed = asyncio.Event()
    engine.on_change(changed.set)
    async with asyncio.timeout(10):
        while engine.state is not state or seats not in (None, engine.seats):
            await changed.wait()
            changed.clear()


@asynccontextmanager
async def engine_of(*workers: FakeWorker | str, ready: bool = True, **more: Any) -> AsyncIterator[Engine]:
    engine = Engine(settings(*workers, **more))
    await engine.start()
    try:
        if ready:
            await until(engine, EngineState.READY, None)
        yield engine
    finally:
        await engine.close()


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with FakeWorker() as worker:
        yield worker


def body(**more: Any) -> bytes:
    asked = {"model": "fake", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked | {"return_token_ids": True, "max_tokens": 100} | more).encode()


async def chat(engine: Engine, **more: Any) -> list[ChatChunk]:
    return [chunk async for burst in engine.chat(body(**more), "r1") for chunk in burst]


def text_of(chunks: list[ChatChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_bytes", [0, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("batch", [1, 5])
async def test_an_answer_is_the_same_however_the_network_cuts_it(worker, split_bytes, batch):
    worker.script(split_bytes=split_bytes, batch=batch)
    async with engine_of(worker) as engine:
        chunks = await chat(engine)
    assert text_of(chunks) == answer(MESSAGES)
    assert next(chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids) == tuple(chat_ids(MESSAGES))
    usage = chunks[-1].usage
    assert usage is not None and usage.prompt_tokens == len(chat_ids(MESSAGES)) and usage.cached_tokens == 0
    assert sum(len(choice.token_ids or ()) for chunk in chunks for choice in chunk.choices) == usage.completion_tokens


async def test_tokens_that_arrive_together_come_in_one_burst(worker):
    worker.script(batch=1000)
    async with engine_of(worker) as engine:
        sizes = [len(burst) async for burst in engine.chat(body(), "r1")]
    assert max(sizes) > 10


async def test_the_request_carries_its_id_and_its_body_as_it_was_given(worker):
    async with engine_of(worker) as engine:
        await chat(engine, seed=7)
    record = worker.generations[-1]
    assert record.headers["x-request-id"] == "r1" and record.body == json.loads(body(seed=7))


async def test_leaving_a_stream_aborts_it_in_the_worker(worker):
    worker.script(pace_ms=5, answer=" word" * 500)
    async with engine_of(worker) as engine:
        stream = engine.chat(body(max_tokens=500), "r1")
        await anext(stream)
        await stream.aclose()
        record = await worker.until(lambda w: w.generations[-1].state == "aborted" and w.generations[-1])
        assert record.tokens_sent < 500
        assert await chat(engine, max_tokens=3)  # and the place is free again


@pytest.mark.parametrize(
    ("fail", "kind", "said"),
    [
        ("error_after:3", EngineLost, "broke off: Internal server error"),
        ("close_after:3", EngineLost, "in the middle"),
        ("close_after:0", EngineLost, "in the middle"),
        ("500", EngineLost, "cannot take the request"),
        ("400", PromptRefused, "refused the request: the script says so"),
        ("garbage", EngineError, "no answer"),
    ],
)
async def test_every_fault_of_the_worker_is_a_typed_error_and_what_came_before_is_given(worker, fail, kind, said):
    worker.script(fail=fail, times=1)
    chunks: list[ChatChunk] = []
    async with engine_of(worker) as engine:
        with pytest.raises(kind, match=said):
            async for burst in engine.chat(body(), "r1"):
                chunks += burst
        assert answer(MESSAGES).startswith(text_of(chunks))
        assert bool(text_of(chunks)) == fail.endswith(":3")
        await until(engine, EngineState.READY)
        assert text_of(await chat(engine)) == answer(MESSAGES)


class RawWorker:
    """A worker of raw bytes: each path answers what it was given."""

    def __init__(self, answers: dict[str, bytes], status: int = 200) -> None:
        self.answers, self.status = answers, status
        self.asked: Counter[str] = Counter()

    async def __aenter__(self) -> "RawWorker":
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_listening(self.server)
        await self.server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
        known = path in self.answers or path == "/health"
        status = (self.status if path in self.answers else 200) if known else 404
        data = self.answers.get(path, b"")
        writer.write(b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        self.asked[path] += 1


PLAN = json.dumps(default_plan("fake", 8192, 16)).encode()


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"data: {\xff\xfe not json\n\n", EngineError),
        (b'data: {"choices": 7}\n\n', EngineError),
        (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', EngineError),
        (b'data: {"error": "\xff"}\n\n', Refusal),
        (b'data: {"error": 7}\n\n', EngineError),
        (b'data: {"error": {}}\n\n', EngineLost),
        (b"data: {", EngineLost),
        (b"<html>what?</html>", EngineLost),
        (b"", EngineLost),
        (b'data: {"choices":[]}\n\n', EngineLost),
    ],
)
async def test_an_answer_that_is_none_is_a_typed_error(sent, kind):
    async with (
        RawWorker({"/deskmate/plan": PLAN, "/v1/chat/completions": sent}) as raw,
        engine_of(raw.url) as engine,
    ):
        with pytest.raises(kind):
            await chat(engine)


@pytest.mark.parametrize(
    "sent", [b"", b"{", b"\xff", b'"\xff"', b"[]", b'{"error": "\xff"}', b'{"error": 7}', b'{"a": 1}']
)
async def test_a_refusal_or_a_count_that_cannot_be_read_is_a_typed_error(sent):
    answers = {"/deskmate/plan": PLAN, "/v1/chat/completions": sent, "/tokenize": sent}
    async with RawWorker(answers) as raw, engine_of(raw.url) as engine:
        with pytest.raises(EngineError):
            await engine.count(b"{}", "r1")
    async with RawWorker(answers, status=418) as raw:
        raw.answers.pop("/deskmate/plan")
        raw.answers["/v1/models"] = b'{"data": [{"id": "fake"}]}'
        raw.status = 200
        async with engine_of(raw.url) as engine:
            raw.status = 418
            for attempt in (chat(engine), engine.count(b"{}", "r1")):
                with pytest.raises(EngineError, match="418"):
                    await attempt


async def test_a_prompt_is_counted_as_the_worker_counts_it(worker):
    async with engine_of(worker) as engine:
        asked = json.dumps({"model": "fake", "messages": MESSAGES}).encode()
        assert await engine.count(asked, "r1") == len(chat_ids(MESSAGES))


# learning what is served ---------------------------------------------------------------------------------------------


async def test_the_plan_tells_everything_and_settings_that_are_given_win(worker):
    async with engine_of(worker, temperature=0.0, tool_parser="mine") as engine:
        model = engine.model
        assert model is not None and engine.seats == 16
        assert (model.id, model.context_tokens, model.kv_tokens) == ("fake", 8192, 8192 * 16)
        assert (model.added_tokens, model.tool_parser, model.demo) == (tuple(SPECIAL), "mine", False)
        assert (model.reasoning_parser, model.thinking_switch) == (None, None)
        assert model.defaults == engine.defaults == Defaults(1024, 0.0, 0.9, 1.1)
    async with engine_of(worker, tool_parser="none") as engine:
        assert engine.model is not None and engine.model.tool_parser is None


async def test_a_bare_vllm_is_asked_and_settings_tell_the_rest():
    with FakeWorker(plan={"version": None}, context_tokens=4000) as worker:
        async with engine_of(worker, seats=5, tool_parser="hermes", max_tokens=99) as engine:
            model = engine.model
            assert model is not None and (model.id, model.context_tokens, engine.seats) == ("fake", 4000, 5)
            assert (model.added_tokens, model.tool_parser) == ((), "hermes")
            assert engine.defaults == Defaults(99, 0.7, 0.9, 1.1)
            assert text_of(await chat(engine, max_tokens=5))


@pytest.mark.parametrize("odd", [b"{", b"\xff", b'{"model": {}}', b'{"data": []}'])
async def test_a_worker_that_tells_nonsense_is_not_ready_and_is_asked_again(odd):
    path = "/v1/models" if b"data" in odd else "/deskmate/plan"
    async with RawWorker({path: odd}) as raw, engine_of(raw.url, ready=False) as engine:
        async with asyncio.timeout(5):
            while raw.asked[path] < 2:  # noqa: ASYNC110 - it lives on sockets
                await asyncio.sleep(0.01)
        with pytest.raises(EngineLost, match="No engine is ready"):
            await chat(engine)
        raw.answers.clear()
        raw.answers["/deskmate/plan"] = PLAN
        await until(engine, EngineState.READY)
        assert engine.seats == 16


async def test_the_plan_file_is_read_before_the_engine_has_loaded_also_when_it_comes_late(tmp_path):
    file = tmp_path / "plan.json"
    with FakeWorker(loading=True) as worker:
        async with engine_of(worker, ready=False, plan_file=file) as engine:
            for unreadable in (None, b"", b"\xff", PLAN[:50]):
                if unreadable is not None:
                    file.write_bytes(unreadable)
                assert engine.model is None and engine.defaults == Defaults()
            file.write_bytes(PLAN)
            assert engine.model is not None and engine.model.added_tokens == tuple(SPECIAL)
            assert engine.state is EngineState.LOADING and engine.seats == 0
            worker.script(loading=False)
            await until(engine, EngineState.READY, 16)


# several workers, lost and back --------------------------------------------------------------------------------------


async def test_the_least_loaded_worker_is_asked_by_its_seats():
    with FakeWorker(seats=2, pace_ms=20) as small, FakeWorker(seats=6, pace_ms=20) as large:
        async with engine_of(small, large, ready=False) as engine:
            await until(engine, EngineState.READY, 8)
            streams = [engine.chat(body(max_tokens=500, ignore_eos=True), f"r{n}") for n in range(8)]
            for stream in streams:
                await anext(stream)
            assert (len(small.generations), len(large.generations)) == (2, 6)
            for stream in streams:
                await stream.aclose()


async def test_a_conversation_stays_with_its_worker_while_that_has_a_seat():
    with FakeWorker(seats=1) as one, FakeWorker(seats=1) as two:
        async with engine_of(one, two) as engine:
            await until(engine, EngineState.READY, seats=2)
            for thread in [f"thread {n}" for n in range(24)] * 2:
                async for _ in engine.chat(
                    body(messages=[{"role": "user", "content": thread}], max_tokens=1), "r", thread
                ):
                    pass
            asked = [{str(record.body["messages"]) for record in worker.generations} for worker in (one, two)]
            assert asked[0] and asked[1] and not asked[0] & asked[1]
            one.script(pace_ms=1000)
            two.script(pace_ms=1000)
            both = [engine.chat(body(), "r", "thread 1") for _ in range(2)]
            await asyncio.gather(*map(anext, both))
            assert [sum(r.state == "running" for r in worker.generations) for worker in (one, two)] == [1, 1]
            for stream in both:
                await stream.aclose()


async def test_a_lost_worker_is_noticed_at_its_broken_stream_and_the_other_goes_on():
    with FakeWorker(pace_ms=10) as first, FakeWorker(pace_ms=10) as second:
        async with engine_of(first, second, ready=False) as engine:
            await until(engine, EngineState.READY, 32)
            stream = engine.chat(body(max_tokens=500, ignore_eos=True), "r1")
            await anext(stream)
            broken, other = (first, second) if first.generations else (second, first)
            broken.stop()
            with pytest.raises(EngineLost):
                async for _ in stream:
                    pass
            await until(engine, EngineState.READY, 16)
            assert text_of(await chat(engine)) == answer(MESSAGES)
            assert len(other.generations) == 1
            broken.start()
            await until(engine, EngineState.READY, 32)


async def test_the_only_worker_is_lost_and_comes_back_and_listeners_are_told(worker):
    async with engine_of(worker) as engine:
        worker.stop()
        await until(engine, EngineState.LOST, 0)
        assert engine.model is not None and engine.since > 0
        with pytest.raises(EngineLost, match="No engine is ready"):
            await chat(engine)
        with pytest.raises(EngineLost):
            await engine.get("/metrics")
        worker.start()
        await until(engine, EngineState.READY, 16)
        assert b"vllm:num_requests_running" in await engine.get("/metrics")


async def test_a_worker_that_falls_silent_in_every_answer_is_lost_until_it_shows_that_it_can_speak(worker, monkeypatch):
    monkeypatch.setattr("gateway.engine.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("gateway.engine.POLL_READY_SECONDS", 0.05)
    async with engine_of(worker) as engine:
        worker.script(fail="hang_after:3", times=1)
        states = []
        engine.on_change(lambda: states.append(engine.state))
        with pytest.raises(EngineLost):
            await chat(engine)
        await until(engine, EngineState.READY)
        assert states == [EngineState.LOST, EngineState.READY]
        assert [record.path for record in worker.generations] == ["/v1/chat/completions", "/v1/completions"]
        assert await chat(engine)


async def test_who_waits_for_the_first_word_of_a_worker_that_is_lost_hears_of_it(worker, monkeypatch):
    monkeypatch.setattr("gateway.engine.POLL_READY_SECONDS", 0.05)
    async with engine_of(worker) as engine:
        worker.script(fail="hang")
        asking = asyncio.create_task(chat(engine))
        await worker.until(lambda w: w.generations)
        worker.script(loading=True)
        with pytest.raises(EngineLost):
            await asking


async def test_what_follows_the_tokens_of_an_answer_is_the_rest_of_it_and_their_text_is_known(worker):
    async with engine_of(worker) as engine:
        said = await chat(engine)
        ids = [number for chunk in said for choice in chunk.choices for number in choice.token_ids or ()]
        prompt = next(chunk.prompt_token_ids for chunk in said if chunk.prompt_token_ids)
        asked = {"model": "fake", "prompt": [*prompt, *ids[:5]], "stream": True, "return_token_ids": True}
        asked |= {"max_tokens": 95, "stream_options": {"include_usage": True}}
        rest = [chunk async for burst in engine.complete(json.dumps(asked).encode(), "r2") for chunk in burst]
        text = "".join(choice.text or "" for chunk in rest for choice in chunk.choices)
        assert await engine.text_of(ids[:5], "r3") + text == answer(MESSAGES)


async def test_a_worker_behind_a_unix_socket_is_a_worker(tmp_path):
    with FakeWorker(uds=tmp_path / "w.sock") as worker:
        async with engine_of(worker) as engine:
            assert text_of(await chat(engine)) == answer(MESSAGES)


async def test_without_a_worker_nothing_is_ready():
    async with engine_of(ready=False) as engine:
        assert (engine.state, engine.seats, engine.since, engine.model) == (EngineState.LOADING, 0, 0.0, None)


@pytest.mark.parametrize("leak", ["object at 0x7f3a2b1c", "in /usr/lib/python3/x.py line 3", "Traceback (most recent"])
def test_a_reason_that_leaks_the_workers_insides_is_no_reason(leak):
    told = reason_of(b'{"error":{"message":"bad %b","param":"stop"}}' % leak.encode())
    assert (told.shown, told.param) == ("", "stop")
