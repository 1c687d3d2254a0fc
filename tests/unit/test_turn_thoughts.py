"""Turns of a model that thinks before it answers: thoughts apart, their tokens counted, and both after a loss."""

from typing import Any

import msgspec
import pytest

from gateway.context import effort_of
from gateway.engine import ChatChoice, ChatChunk, ChatDelta, Defaults, ModelFacts, Usage
from gateway.errors import EngineError
from gateway.events import (
    Delta,
    Finished,
    Form,
    Progress,
    Rest,
    Started,
    Thought,
    TurnEvent,
    decode_event,
    encode_event,
)
from gateway.live import _joined
from gateway.said import Said
from tests.unit.test_turn_forms import JSON, LOSS, OPENING, PROMPT, WITH_TOOLS, WRITTEN, call, chunk, ended, ids
from tests.unit.test_turn_forms import Engine as Scripted
from tests.unit.test_turn_forms import run as run_on

PLAIN = Form()


class Engine(Scripted):
    model = ModelFacts("m", 4000, 4, Defaults(), tool_parser="hermes", reasoning_parser="qwen3")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.turn.AWAY_PAUSE_SECONDS", 0.001)


def thought(text: str | None, answer: str | None = None, *, said: str | None = None) -> ChatChunk:
    tokens = ids(text or "" if said is None else said)
    return ChatChunk((ChatChoice(ChatDelta(answer, reasoning=text), None, tokens),))


def mark(letters: str) -> ChatChunk:
    """Tokens that are shown to nobody."""
    return ChatChunk((ChatChoice(ChatDelta(), None, ids(letters)),))


def again(text: str) -> ChatChunk:
    return ChatChunk(prompt_token_ids=(*PROMPT, *ids(text)))


async def run(engine: Engine, form: Form, *before: TurnEvent) -> list[TurnEvent]:
    events = await run_on(engine, form, *before)
    return [event for event in events if not isinstance(event, Progress)]


def shown(events: list[TurnEvent]) -> tuple[str, str]:
    thoughts = "".join(event.text for event in events if isinstance(event, Thought))
    return thoughts, "".join(event.text for event in events if isinstance(event, Delta))


def asked_ids(engine: Engine) -> list[int]:
    return list(engine.asked[-1]["kv_transfer_params"]["prompt_token_ids"])


THINKING = [OPENING, mark("<t>"), thought("so "), thought("it is")]
ANSWER = [mark("<>"), chunk("yes"), chunk(end="stop"), ChatChunk((), Usage(3, 16))]


# thoughts ------------------------------------------------------------------------------------------------------------


async def test_thoughts_are_told_apart_and_their_tokens_are_counted():
    events = await run(Engine([*THINKING, *ANSWER]), PLAIN)
    assert events[1:4] == [
        Thought("so ", ids("<t>so ")),
        Thought("it is", ids("it is")),
        Delta("yes", ids("<>yes")),
    ]
    assert (ended(events).reasoning_tokens, ended(events).completion_tokens) == (11, 16)
    items = Said.of(events).output(True)
    assert items[0] == {"type": "reasoning", "text": "so it is", "status": "completed"}
    assert items[1]["content"] == "yes"


async def test_the_blank_lines_that_models_write_around_their_thoughts_are_not_shown():
    burst = [thought("\n", said="b"), thought("so\n", said="")]
    behind = [chunk("\n\n", said="c"), chunk("\n yes", said="d"), chunk(end="stop")]
    _, *events, end = await run(Engine([OPENING, thought("\n", said="a"), burst, *behind]), PLAIN)
    assert events == [Thought("so\n", ids("ab")), Delta(" yes", ids("cd"))]
    assert ended([end]).reasoning_tokens == 2


async def test_of_a_chunk_that_holds_both_the_tokens_are_the_answers():
    burst = [thought("so"), thought(" it is", "ye", said=" it is<>ye")]
    _, *events, end = await run(Engine([OPENING, burst, chunk("s", end="stop")]), PLAIN)
    assert events[:2] == [Thought("so it is", ids("so")), Delta("ye", ids(" it is<>ye"))]
    assert ended([end]).reasoning_tokens == 2


async def test_a_thought_beside_the_answer_is_not_shown():
    events = await run(Engine([*THINKING, mark("<>"), chunk("yes"), thought("or"), chunk(" no", end="stop")]), PLAIN)
    assert shown(events) == ("so it is", "yes no")


async def test_a_call_follows_thoughts():
    engine = Engine([*THINKING, chunk(None, call(0, "f"), said="<"), chunk(None, call(0, None, '{"a":1}'), end="stop")])
    *_, rest, _ = events = await run(engine, WITH_TOOLS)
    assert shown(events) == ("so it is", "") and rest == Rest((WRITTEN,), 1)
    assert [item["type"] for item in Said.of(events).output(True)] == ["reasoning", "function_call"]


async def test_an_answer_that_ends_in_its_thoughts_is_only_thoughts_and_not_whole():
    events = await run(Engine([*THINKING, chunk(end="length")]), PLAIN)
    assert ended(events).reason == "max_output_tokens"
    assert Said.of(events).output(False) == [{"type": "reasoning", "text": "so it is", "status": "incomplete"}]


def test_thoughts_are_logged_and_older_logs_are_read():
    for event in (Thought("a", (1, 2)), Finished("completed", reasoning_tokens=3)):
        assert decode_event(encode_event(event)) == event
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_event(Finished("completed")))[:-1])
    assert decode_event(older) == Finished("completed")
    logged = [Thought("a", (1,)), Thought("b", (2,)), Delta("c", (3,)), Delta("d")]
    assert _joined(logged) == [Thought("ab", (1, 2)), Delta("cd", (3,))]


# when the engine dies ------------------------------------------------------------------------------------------------


async def test_thoughts_that_broke_off_go_on_from_their_tokens_where_parsers_read_along():
    engine = Engine(
        [*THINKING, LOSS], [again("<t>so it is"), thought(" so"), *ANSWER[:-1], ChatChunk((), Usage(14, 9))]
    )
    events = await run(engine, PLAIN)
    assert shown(events) == ("so it is so", "yes")
    assert asked_ids(engine) == [*PROMPT, *ids("<t>so it is")] and engine.asked[1]["max_tokens"] == 50 - 11
    end = ended(events)
    assert (end.prompt_tokens, end.completion_tokens, end.reasoning_tokens) == (3, 20, 14)


async def test_an_answer_that_broke_off_behind_its_thoughts_goes_on_from_its_tokens():
    engine = Engine([*THINKING, *ANSWER[:2], LOSS], [again("<t>so it is<>yes"), chunk(" no", end="stop")])
    events = await run(engine, PLAIN)
    assert shown(events) == ("so it is", "yes no") and asked_ids(engine) == [*PROMPT, *ids("<t>so it is<>yes")]


@pytest.mark.parametrize("before", ["", "<t>"], ids=["opened by the template", "opened by the model"])
@pytest.mark.parametrize("behind", ["<", "<ca>"])
async def test_tokens_behind_the_thoughts_that_were_seen_are_taken_back(before, behind):
    engine = Engine(
        [OPENING, mark(before), thought("so", said=f"so{behind}"), LOSS],
        [again(f"{before}so"), thought(" it is"), *ANSWER],
    )
    events = await run(engine, WITH_TOOLS)
    assert asked_ids(engine) == [*PROMPT, *ids(f"{before}so")] and shown(events) == ("so it is", "yes")


async def test_tokens_behind_a_text_that_was_seen_are_taken_back_behind_thoughts_too():
    engine = Engine(
        [*THINKING, mark("<>"), chunk("a", said="a<"), LOSS],
        [again("<t>so it is<>a"), chunk(None, call(0, "f")), chunk(end="stop")],
    )
    *_, rest, _ = await run(engine, WITH_TOOLS)
    assert asked_ids(engine) == [*PROMPT, *ids("<t>so it is<>a")] and isinstance(rest, Rest)


async def test_what_somebody_else_logged_goes_on_in_its_thoughts():
    engine = Engine([again("so"), thought(" it is"), *ANSWER])
    events = await run(engine, PLAIN, Started(PROMPT), Thought("so", ids("so")))
    assert shown(events) == (" it is", "yes") and asked_ids(engine) == [*PROMPT, *ids("so")]
    assert ended(events).reasoning_tokens == 8


async def test_a_model_that_does_not_think_goes_on_as_plain_text():
    class Plain(Scripted):
        model = ModelFacts("m", 4000, 4, Defaults())

        def complete(self, body: bytes, request_id: str, thread: str = "") -> Any:
            return self.chat(body, request_id)

    engine = Plain([OPENING, chunk("a"), LOSS], [chunk("b", end="stop")])
    assert shown(await run(engine, PLAIN)) == ("", "ab")  # type: ignore[arg-type]
    assert engine.asked[1]["prompt"] == [*PROMPT, *ids("a")] and "chat_template_kwargs" not in engine.asked[0]


# JSON of a given form ------------------------------------------------------------------------------------------------


async def test_json_that_broke_off_is_written_again_from_behind_its_thoughts():
    end = [mark("<>"), chunk("{b}", end="stop"), ChatChunk((), Usage(14, 5))]
    engine = Engine([*THINKING, mark("<>"), chunk("{a"), LOSS], [again("<t>so it is"), *end])
    *_, rest, last = events = await run(engine, Form(format=JSON, at_once=True))
    assert rest == Rest(("{b}",), 5) and shown(events) == ("so it is", "")
    assert asked_ids(engine) == [*PROMPT, *ids("<t>so it is")] and engine.asked[1]["response_format"] == JSON
    assert (ended([last]).completion_tokens, ended([last]).reasoning_tokens) == (16, 11)


async def test_json_that_was_seen_goes_on_where_it_is_written_the_same_and_fails_where_it_is_not():
    seen = [*THINKING, mark("<>"), chunk("\n{a", said="{a"), LOSS]
    same = [again("<t>so it is"), mark("<>"), chunk("\n{", said="{"), chunk("ab}", end="stop")]
    assert shown(await run(Engine(seen, same), Form(format=JSON))) == ("so it is", "{ab}")
    with pytest.raises(EngineError, match="writes another one"):
        await run(Engine(seen, [again("<t>so it is"), mark("<>"), chunk("{b")]), Form(format=JSON))


async def test_json_goes_on_in_the_thoughts_before_it():
    engine = Engine([*THINKING, LOSS], [again("<t>so it is"), thought(" so"), mark("<>"), chunk("{}", end="stop")])
    *_, rest, _ = events = await run(engine, Form(format=JSON, at_once=True))
    assert shown(events) == ("so it is so", "") and rest == Rest(("{}",), 4)


# how much ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("effort", "switch", "asked"), [
    (None, "enable_thinking", {}),
    ("none", "enable_thinking", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("minimal", "enable_thinking", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("high", "enable_thinking", {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
    ("minimal", None, {"reasoning_effort": "low"}),
    ("xhigh", None, {"reasoning_effort": "high"}),
])  # fmt: skip
def test_effort_turns_thinking_off_where_the_template_has_a_switch(effort, switch, asked):
    model = ModelFacts("m", 1, 1, reasoning_parser="qwen3", thinking_switch=switch)
    assert effort_of(Form(effort=effort), model) == asked
    assert effort_of(Form(effort=effort), ModelFacts("m", 1, 1)) == {}
