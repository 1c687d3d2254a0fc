"""Turns whose answer is more than text: calls kept back until they are whole, JSON written again, both after a loss."""

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from gateway.admission import Waiting
from gateway.calls import MOST_CALLS, Kept
from gateway.context import TurnRequest, check_outputs
from gateway.engine import (
    CallDelta,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    Defaults,
    EngineState,
    FunctionDelta,
    ModelFacts,
    Usage,
)
from gateway.errors import BadRequest, EngineError, EngineLost
from gateway.events import (
    Asked,
    Call,
    Delta,
    Finished,
    Form,
    Progress,
    Rest,
    Sampling,
    Started,
    TurnEvent,
    decode_event,
    encode_event,
)
from gateway.prompt import Window
from gateway.quotas import Balance
from gateway.said import Said
from gateway.turn import run_turn

TOOLS: Any = ({"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}})
WITH_TOOLS = Form(TOOLS)
JSON: Any = {"type": "json_object"}
PROMPT = (1, 2, 3)
LETTERS = "abcdefghijklmnopqrstuvwxyz <>{}"  # token n is letter n


def ids(text: str) -> tuple[int, ...]:
    return tuple(LETTERS.index(letter) for letter in text)


def chunk(text: str | None = None, *calls: CallDelta, said: str | None = None, end: str | None = None) -> ChatChunk:
    """One event; `said`: the tokens it is made of, where they are not those of its text."""
    tokens = ids(text or "" if said is None else said)
    return ChatChunk((ChatChoice(ChatDelta(text, calls or None), end, tokens or None),))


def call(index: int, name: str | None = None, arguments: str | None = None) -> CallDelta:
    return CallDelta(index, f"call_{name}" if name else None, FunctionDelta(name, arguments))


OPENING = ChatChunk(prompt_token_ids=PROMPT)
USAGE = ChatChunk((), Usage(3, 9))
LOSS = EngineLost("gone")
WEATHER = [
    chunk("i look"),
    chunk(said="<"),
    chunk(None, call(0, "f"), said="a"),
    chunk(None, call(0, None, '{"a":'), said="b"),
]
WRITTEN = Call("call_f", "f", '{"a":1}')


class Place:
    produced = 0
    balance = Balance()

    async def wait(self) -> AsyncGenerator[Waiting, None]:
        yield Waiting(0, 0.0)

    async def release(self, tokens: int = 0, prompt: int | None = None) -> None:
        self.tokens = tokens


class Engine:
    """Gives one script after the other: each a list of bursts, the last of which may be an error."""

    state = EngineState.READY
    model = ModelFacts("m", 4000, 4, Defaults(), tool_parser="hermes")

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.asked: list[dict[str, Any]] = []

    async def chat(self, body: bytes, request_id: str, thread: str = "") -> AsyncGenerator[list[ChatChunk], None]:
        self.asked.append(json.loads(body))
        for burst in self.scripts.pop(0):
            if isinstance(burst, Exception):
                raise burst
            if inspect.isawaitable(burst):
                await burst
                continue
            yield burst if isinstance(burst, list) else [burst]

    async def until_ready(self) -> None: ...

    async def text_of(self, token_ids: list[int], request_id: str) -> str:
        return "".join(LETTERS[number] for number in token_ids)


def asked_for(form: Form, max_tokens: int = 50) -> TurnRequest:
    items = [{"type": "message", "role": "user", "content": "hi"}]
    sampling = Sampling(max_tokens=max_tokens, temperature=0.5, top_p=0.9, repetition_penalty=1.1)
    return TurnRequest("resp_1", "ada", "salt", "m", None, items, Window(), sampling, form)


async def run(engine: Engine, form: Form, *before: TurnEvent) -> list[TurnEvent]:
    turn = run_turn(asked_for(form), None, Place(), engine, Said.of(before), seal=str, began=0.0)  # type: ignore[arg-type]
    return [event async for event in turn][1:]  # without the seat


def ended(events: list[TurnEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.turn.AWAY_PAUSE_SECONDS", 0.001)


# calls ---------------------------------------------------------------------------------------------------------------


async def test_text_is_shown_at_once_and_a_call_when_the_answer_is_whole():
    engine = Engine([OPENING, *WEATHER, chunk(None, call(0, None, "1}"), said="c"), chunk(end="tool_calls"), USAGE])
    started, text, rest, end = await run(engine, WITH_TOOLS)
    assert (started, text) == (Started(PROMPT), Delta("i look", ids("i look")))
    assert rest == Rest((WRITTEN,), 4) and (end.status, end.completion_tokens) == ("completed", 9)
    (asked,) = engine.asked
    assert (asked["tools"], asked["tool_choice"], asked["parallel_tool_calls"]) == (list(TOOLS), "auto", True)


async def test_text_that_comes_together_with_a_call_or_after_it_waits_with_it():
    engine = Engine([OPENING, chunk("look", call(0, "f")), chunk(" then ", call(1, "g")), chunk("end", end="stop")])
    _, rest, _ = await run(engine, WITH_TOOLS)
    calls = Call("call_f", "f", "{}"), Call("call_g", "g", "{}")
    assert rest == Rest(("look", calls[0], " then ", calls[1], "end"), len("look then end"))


async def test_blank_before_a_call_is_not_shown_but_blank_before_text_is():
    blank = chunk("  ", said="<<")
    _, rest, _ = await run(Engine([OPENING, blank, chunk(None, call(0, "f"), said="a"), chunk(end="stop")]), WITH_TOOLS)
    assert rest == Rest((Call("call_f", "f", "{}"),), 3)
    _, text, _ = await run(Engine([OPENING, blank, chunk("a", end="stop")]), WITH_TOOLS)
    assert text == Delta("  a", (*ids("<<"), *ids("a")))
    _, rest, _ = await run(Engine([OPENING, blank, chunk(end="stop")]), WITH_TOOLS)
    assert rest == Rest(("  ",), 2)


async def test_a_call_cut_by_the_limit_is_not_complete():
    engine = Engine([OPENING, *WEATHER, chunk(end="length")])
    *_, rest, end = await run(engine, WITH_TOOLS)
    assert rest == Rest((Call("call_f", "f", '{"a":', complete=False),), 3, cut=True)
    assert (end.status, end.reason) == ("incomplete", "max_output_tokens")


def test_what_was_not_offered_or_is_too_much_is_left_out():
    kept = Kept()
    for index in range(MOST_CALLS + 9):
        kept.call([call(index, "f" if index % 2 else "rm", "{}")])
    assert {part.name for part in kept.rest(WITH_TOOLS, 1, False).parts} == {"f"}  # type: ignore[union-attr]
    assert len(kept.rest(Form(TOOLS, parallel=False), 1, False).parts) == 1
    assert len(kept.rest(Form(TOOLS, most_calls=3), 1, False).parts) == 3
    kept.clear()
    kept.call([call(index, "f") for index in range(99)])
    assert len(kept.rest(WITH_TOOLS, 1, False).parts) == MOST_CALLS


def test_a_call_that_the_engine_gave_no_id_gets_one():
    kept = Kept()
    kept.call([CallDelta(0, None, FunctionDelta("f", "{}"))])
    (made,) = kept.rest(WITH_TOOLS, 1, False).parts
    assert isinstance(made, Call) and made.id.startswith("call_")


async def test_a_call_that_was_being_written_is_written_again_from_the_last_text_that_was_seen():
    again = ChatChunk(prompt_token_ids=(*PROMPT, *ids("i look")))
    rest = [
        chunk(None, call(0, "g"), said="z"),
        chunk(None, call(0, None, "[]"), end="tool_calls"),
        ChatChunk((), Usage(9, 4)),
    ]
    engine = Engine([OPENING, *WEATHER, LOSS], [again, *rest])
    _, text, *progress, kept, end = await run(engine, WITH_TOOLS)
    assert [event.state for event in progress] == ["engine_lost", "resuming"]  # type: ignore[union-attr]
    assert text == Delta("i look", ids("i look")) and kept == Rest((Call("call_g", "g", "[]"),), 1)
    first, second = engine.asked
    assert second["kv_transfer_params"] == {"prompt_token_ids": [*PROMPT, *ids("i look")]}
    assert second["tools"] == first["tools"] and second["max_tokens"] == first["max_tokens"] - len("i look")
    assert (ended([end]).prompt_tokens, ended([end]).completion_tokens) == (3, 10)


async def test_tokens_behind_the_text_that_was_seen_are_taken_back():
    """An engine that is read late joins its events: the first token of a call came with the text before it."""
    again = ChatChunk(prompt_token_ids=(*PROMPT, *ids("look")))
    engine = Engine(
        [OPENING, chunk("look", said="look<{"), LOSS], [again, chunk(None, call(0, "f")), chunk(end="stop")]
    )
    await run(engine, WITH_TOOLS)
    assert engine.asked[1]["kv_transfer_params"]["prompt_token_ids"] == [*PROMPT, *ids("look")]


async def test_tokens_of_a_call_that_is_not_whole_are_counted_when_the_turn_is_ended():
    place, said, held = Place(), Said(), asyncio.Event()
    engine = Engine([OPENING, *WEATHER, held.wait()])
    turn = run_turn(asked_for(WITH_TOOLS), None, place, engine, said, seal=str, began=0.0)  # type: ignore[arg-type]
    running = asyncio.create_task(_all_of(turn))
    async with asyncio.timeout(5):
        while said.unseen < 3:  # noqa: ASYNC110 - the turn tells nobody of what it keeps back
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (said.tokens, said.unseen, place.tokens) == (6, 3, 9)


async def _all_of(turn: AsyncGenerator[TurnEvent, None]) -> list[TurnEvent]:
    async with aclosing(turn):
        return [event async for event in turn]


async def test_a_loss_before_a_word_asks_for_the_whole_again():
    engine = Engine([OPENING, *WEATHER[1:], LOSS], [OPENING, chunk("no", end="stop")])
    events = await run(engine, WITH_TOOLS)
    assert engine.asked[0] == engine.asked[1] and Delta("no", ids("no")) in events


async def test_an_engine_that_reads_something_else_than_our_tokens_does_not_go_on():
    engine = Engine([OPENING, chunk("look"), LOSS], [OPENING, chunk("look")])
    with pytest.raises(EngineError, match="cannot go on"):
        await run(engine, WITH_TOOLS)


async def test_a_request_that_breaks_three_engines_in_its_call_is_given_up():
    again = ChatChunk(prompt_token_ids=(*PROMPT, *ids("i look")))
    engine = Engine([OPENING, *WEATHER, LOSS], *[[again, *WEATHER[1:], LOSS] for _ in range(3)])
    with pytest.raises(EngineLost):
        await run(engine, WITH_TOOLS)
    assert len(engine.scripts) == 1


@pytest.mark.parametrize("cut", [False, True])
async def test_an_answer_whose_calls_were_logged_is_only_finished_by_whoever_takes_it_over(cut):
    before = [Started(PROMPT), Delta("i look", ids("i look")), Rest((WRITTEN,), 4, cut)]
    (end,) = await run(Engine(), WITH_TOOLS, *before)
    assert (end.status, end.prompt_tokens, end.completion_tokens) == ("incomplete" if cut else "completed", 3, 10)
    assert [item["type"] for item in Said.of(before).output(True)] == ["message", "function_call"]


def test_what_was_asked_for_is_logged_with_the_turn_and_older_logs_ask_for_text():
    sampling = Sampling(9, 0.5, 0.9, 1.1)
    asked = Asked("m", None, Window(), sampling, Form(TOOLS, {"type": "function"}, False, 3, JSON, True))
    assert decode_event(encode_event(asked)) == asked
    plain = Asked("m", None, Window(), sampling)
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_event(plain))[:-1])
    assert decode_event(older) == plain and not plain.form
    rest = Rest(("text", WRITTEN), 3, True)
    assert decode_event(encode_event(rest)) == rest


# JSON of a given form ------------------------------------------------------------------------------------------------


async def test_json_is_shown_as_it_is_written_when_somebody_reads_along():
    engine = Engine([OPENING, chunk("{a"), chunk("b}"), chunk(end="stop")])
    assert [event for event in await run(engine, Form(format=JSON)) if isinstance(event, Delta)] == [
        Delta("{a", ids("{a")),
        Delta("b}", ids("b}")),
    ]
    assert engine.asked[0]["response_format"] == JSON and "tools" not in engine.asked[0]


async def test_json_that_nobody_reads_along_is_written_again_and_shown_when_it_is_whole():
    engine = Engine([OPENING, chunk("{a"), LOSS], [OPENING, chunk("{b"), chunk("c}", end="stop"), USAGE])
    *_, rest, end = await run(engine, Form(format=JSON, at_once=True))
    assert rest == Rest(("{bc}",), 4) and ended([end]).completion_tokens == 9


async def test_json_that_was_seen_goes_on_where_it_is_written_the_same_and_fails_where_it_is_not():
    same = [OPENING, chunk("{"), chunk("abc"), chunk("}", end="stop"), USAGE]
    events = await run(Engine([OPENING, chunk("{a"), chunk("b"), LOSS], same), Form(format=JSON))
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "{abc}"
    assert (ended(events).prompt_tokens, ended(events).completion_tokens) == (3, 9)
    with pytest.raises(EngineError, match="writes another one") as refused:
        await run(Engine([OPENING, chunk("{a"), LOSS], [OPENING, chunk("{b")]), Form(format=JSON))
    assert refused.value.code == "engine_lost"


# outputs of calls ----------------------------------------------------------------------------------------------------


def test_the_output_of_an_unknown_call_is_refused_with_its_place_in_the_input():
    items = [{"type": "function_call", "call_id": "1"}, {"type": "function_call_output", "call_id": "1"}]
    check_outputs(items, 1)
    with pytest.raises(BadRequest, match="`2`") as refused:
        check_outputs([*items, {"role": "user"}, {"type": "function_call_output", "call_id": "2"}], 2)
    assert refused.value.param == "input[1].call_id"


def test_progress_is_no_part_of_what_was_said():
    assert Said.of([Progress("resuming")]).output(False) == [] and len(Said().output(True)) == 1
