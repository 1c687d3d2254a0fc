"""The stream of a response: a pure fold over the turn's events, in the order and shapes of the Responses API."""

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent

from gateway.api.response_output import Echo, StreamRenderer, decode_echo, encode_echo, render_item, response_object
from gateway.conversations import Item, item_id
from gateway.events import (
    Call,
    Delta,
    Finished,
    Progress,
    Queued,
    Rest,
    Started,
    Thought,
    Timing,
    TurnEvent,
    decode_event,
    encode_event,
)
from gateway.said import Said

ECHO = Echo(model="m", temperature=0.5, top_p=0.9, max_output_tokens=100, metadata={"k": "v"}, created_at=1_700_000_000)
EVENT_TYPES = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}
OPENED = ["response.output_item.added", "response.content_part.added"]
CLOSED = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALLED = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]

DONE = Finished("completed", None, 10, 4, 2, Timing(0.1, 0.2, 0.3), completed_at=1_700_000_009)
CUT = Finished("incomplete", "max_output_tokens", 10, 0, 2, Timing(0.1, 0.2, 0.3))
CANCELLED = Finished("cancelled")
FAILED = Finished("failed", code="engine_lost", message="The engine is gone.")
ENDS = [DONE, CUT, CANCELLED, FAILED]

waits = st.lists(
    st.builds(Queued, st.integers(1, 9), st.none() | st.floats(0, 99))
    | st.builds(Progress, st.sampled_from(["loading", "engine_lost"])),
    max_size=4,
)
deltas = st.lists(
    st.builds(lambda text, ids: Delta(text, tuple(ids)), st.text(min_size=1), st.lists(st.integers(0, 9)))
)
thoughts = st.lists(st.builds(Thought, st.text(min_size=1)), max_size=2)
calls = st.builds(Call, st.text(), st.text(), st.text(), st.booleans())
rests = st.builds(lambda parts: Rest(tuple(parts), 1), st.lists(st.text(min_size=1) | calls, max_size=4))


@st.composite
def turns(draw, *, text_only: bool = False) -> list[TurnEvent]:
    """A whole turn: it waits, is seated, is read, thinks, speaks, calls tools, ends; or ends at any of these."""
    said = draw(deltas) if text_only else [*draw(thoughts), *draw(deltas), *draw(st.lists(rests, max_size=1))]
    whole = [*draw(waits), Queued(0, 0.0), Started((1, 2, 3)), *said]
    if draw(st.booleans()):
        return [*whole, draw(st.sampled_from(ENDS))]
    return [*whole[: draw(st.integers(0, len(whole)))], draw(st.sampled_from(ENDS[1:]))]


def render(events: list[TurnEvent], echo: Echo = ECHO) -> list[bytes]:
    renderer = StreamRenderer("resp_1", echo, "shelf", 7)
    return [*renderer.begin(), *(frame for event in events for frame in renderer.feed(event))]


def payloads(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(frame.decode().split("data: ", 1)[1]) for frame in frames]


def kinds(events: list[TurnEvent]) -> list[str]:
    return [payload["type"] for payload in payloads(render(events))]


@given(turns())
def test_the_same_events_give_the_same_bytes_also_when_they_come_from_the_log(events):
    logged = [decode_event(encode_event(event)) for event in events]
    assert logged == events
    assert render(events) == render(logged, decode_echo(encode_echo(ECHO)))


@given(turns(), st.data())
def test_a_reader_who_comes_in_the_middle_gets_the_rest_of_what_the_first_one_saw(events, data):
    """Whatever was fed before, the next event renders the same: nothing depends on how they were grouped."""
    whole, renderer = render(events), StreamRenderer("resp_1", ECHO, "shelf", 7)
    at = data.draw(st.integers(0, len(events)))
    seen = [*renderer.begin(), *(frame for event in events[:at] for frame in renderer.feed(event))]
    assert renderer.count == len(seen)
    rest = [frame for event in events[at:] for frame in renderer.feed(event)]
    assert b"".join(seen + rest) == b"".join(whole)


@given(turns())
def test_numbers_have_no_gaps_and_every_event_is_named_by_its_type(events):
    frames = render(events)
    for number, (frame, payload) in enumerate(zip(frames, payloads(frames), strict=True)):
        assert payload["sequence_number"] == number
        assert frame.startswith(f"event: {payload['type']}\ndata: {{".encode()) and frame.endswith(b"}\n\n")
        assert frame.count(b"\n") == 3


@given(turns())
def test_the_official_client_reads_every_event_of_the_standard_without_a_complaint(events):
    for payload in payloads(render(events)):
        if payload["type"].startswith("deskmate:"):
            assert set(payload) == {"type", "sequence_number", "eta_seconds"} | {
                "position" if payload["type"] == "deskmate:queue.updated" else "state"
            }
            continue
        response = payload.get("response")
        if response and response["error"]:
            response["error"]["code"] = "server_error"  # the standard knows no code of ours; its clients take any
        read = EVENT_TYPES[payload["type"]].model_validate_json(json.dumps(payload), strict=True)
        assert read.model_dump(mode="json", exclude_unset=True) == payload


@given(turns(text_only=True))
def test_the_text_is_the_same_in_deltas_ends_and_the_response(events):
    shown = payloads(render(events))
    text = "".join(payload["delta"] for payload in shown if payload["type"] == "response.output_text.delta")
    assert text == "".join(event.text for event in events if isinstance(event, Delta))
    for payload in shown:
        if payload["type"] == "response.output_text.done":
            assert payload["text"] == text
    output = shown[-1]["response"]["output"]
    assert "".join(part["text"] for item in output for part in item["content"]) == text


@given(turns(text_only=True))
def test_the_order_is_that_of_the_standard(events):
    seen = [kind for kind in dict.fromkeys(kinds(events)) if not kind.startswith("deskmate:")]
    order = [
        "response.created",
        "response.queued",
        "response.in_progress",
        *OPENED,
        "response.output_text.delta",
        *CLOSED,
    ]
    order += ["response.completed", "response.incomplete", "response.failed"]
    assert seen == [kind for kind in order if kind in seen]
    once = [kind for kind in kinds(events) if not kind.startswith("deskmate:") and not kind.endswith("text.delta")]
    assert len(once) == len(set(once)) and set(OPENED).issubset(once) == set(CLOSED).issubset(once)


def test_a_completed_answer_without_a_word_is_still_a_message():
    assert kinds([Queued(0), DONE])[3:] == [*OPENED, *CLOSED, "response.completed"]
    response = payloads(render([Queued(0), DONE]))[-1]["response"]
    (message,) = response["output"]
    assert message["status"] == "completed" and message["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("end", "kind", "status", "item"),
    [
        (DONE, "response.completed", "completed", "completed"),
        (CUT, "response.incomplete", "incomplete", "incomplete"),
        (CANCELLED, "response.incomplete", "cancelled", "incomplete"),
        (FAILED, "response.failed", "failed", "incomplete"),
    ],
)
def test_every_ending_closes_what_was_said_and_says_how_it_ended(end, kind, status, item):
    *_, part, done, last = payloads(render([Queued(0), Started(), Delta("Hi"), end]))
    assert (part["type"], done["item"]["status"], last["type"]) == ("response.content_part.done", item, kind)
    response = last["response"]
    assert response["status"] == status and response["output"] == [done["item"]]
    assert response["error"] == ({"code": end.code, "message": end.message} if end.code else None)
    assert response["incomplete_details"] == ({"reason": end.reason} if end.reason else None)
    assert (response["completed_at"] is not None) == (status == "completed")
    assert response["usage"]["total_tokens"] == end.prompt_tokens + end.completion_tokens


@pytest.mark.parametrize("end", ENDS[1:], ids=lambda end: end.status)
def test_a_turn_that_ends_before_a_word_has_no_message(end):
    shown = payloads(render([Queued(3, 1.0), end]))
    assert [payload["type"] for payload in shown][:3] == [
        "response.created",
        "response.queued",
        "deskmate:queue.updated",
    ]
    assert len(shown) == 4 and shown[-1]["response"]["output"] == []


def test_a_seat_that_is_free_at_once_is_no_queue():
    assert kinds([Queued(0, 0.0)]) == ["response.created", "deskmate:queue.updated", "response.in_progress"]


def test_the_item_of_the_stream_is_named_as_it_will_be_stored():
    shown = payloads(render([Queued(0), Delta("Hi"), DONE]))
    assert {payload["item_id"] for payload in shown if "item_id" in payload} == {"msg_shelf7"}
    assert shown[-1]["response"]["output"][0]["id"] == "msg_shelf7"


def test_a_finished_response_says_where_its_time_went_beside_the_metadata_of_its_caller():
    response = response_object("resp_1", ECHO, "completed", [], DONE)
    assert response["metadata"] == {
        "k": "v",
        "deskmate:queued_seconds": "0.100",
        "deskmate:prefill_seconds": "0.200",
        "deskmate:decode_seconds": "0.300",
        "deskmate:cached_tokens": str(DONE.cached_tokens),
    }
    assert response_object("resp_1", ECHO, "in_progress", [], None)["metadata"] == {"k": "v"}


def test_the_whole_answer_is_the_last_event_of_its_stream():
    renderer = StreamRenderer("resp_1", ECHO, "shelf", 7)
    events = [Queued(0), Delta("Hi"), DONE]
    frames = [*renderer.begin(), *(frame for event in events for frame in renderer.feed(event))]
    assert json.loads(json.dumps(renderer.result(DONE))) == payloads(frames)[-1]["response"]


def test_a_stored_item_is_shown_with_its_parts_by_who_said_it():
    parts = [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    shown = render_item(Item("msg_1", {"type": "message", "role": "user", "content": parts}))
    assert shown["content"] == parts and shown["status"] == "completed"
    answer = render_item(Item("msg_2", {"role": "assistant", "content": "hi", "status": "incomplete"}))
    assert answer["content"][0]["type"] == "output_text" and answer["status"] == "incomplete"


def test_thoughts_are_an_item_before_the_message_and_its_tokens_are_told_apart():
    outcome = msgspec.structs.replace(DONE, reasoning_tokens=2)
    events = [Queued(0), Started(), Thought("Hm", (1, 2)), Delta("Hi", (3,)), outcome]
    shown = payloads(render(events))
    thinks = ["response.reasoning_text.delta", "response.reasoning_text.done", *CLOSED[1:]]
    assert [payload["type"] for payload in shown][3:-1] == [
        *OPENED, *thinks, *OPENED, "response.output_text.delta", *CLOSED,
    ]  # fmt: skip
    thought, message = shown[-1]["response"]["output"]
    content = [{"type": "reasoning_text", "text": "Hm"}]
    assert thought == {"id": "rs_shelf7", "type": "reasoning", "summary": [], "content": content, "status": "completed"}
    assert message["id"] == "msg_shelf8"
    assert shown[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


# calls of tools ------------------------------------------------------------------------------------------------------


@given(turns())
def test_every_item_is_opened_filled_and_closed_before_the_next_one_and_is_what_will_be_stored(events):
    shown, said = payloads(render(events)), Said.of(events)
    done: list[dict[str, Any]] = []
    open_items: list[str] = []
    for payload in shown:
        if payload["type"] == "response.output_item.added":
            open_items.append(payload["item"]["id"])
            assert payload["output_index"] == len(done) and payload["item"]["status"] == "in_progress"
        elif payload["type"] == "response.output_item.done":
            assert payload["output_index"] == len(done) and payload["item"]["id"] == open_items[-1]
            done.append(payload["item"])
        elif "item_id" in payload:
            assert payload["item_id"] == open_items[-1] and len(open_items) == len(done) + 1
    assert shown[-1]["response"]["output"] == done and len(open_items) == len(done)
    stored = said.output(shown[-1]["response"]["status"] == "completed")
    items = [Item(item_id(body, "shelf", number), body) for number, body in enumerate(stored, 7)]
    assert [render_item(item) for item in items] == done


def test_a_call_is_an_item_of_its_own_after_the_text_before_it():
    call = Call("call_1", "weather", '{"city":"Bonn"}')
    shown = payloads(render([Queued(0), Started(), Delta("I look."), Rest((call, "Then.", call), 3), DONE]))
    assert [payload["type"] for payload in shown][3:-1] == [
        *OPENED, "response.output_text.delta", *CLOSED, *CALLED,
        *OPENED, "response.output_text.delta", *CLOSED, *CALLED,
    ]  # fmt: skip
    first, second, third, fourth = shown[-1]["response"]["output"]
    assert (first["content"][0]["text"], third["content"][0]["text"]) == ("I look.", "Then.")
    assert second == {
        "type": "function_call",
        "id": "fc_shelf8",
        "call_id": "call_1",
        "name": "weather",
        "arguments": '{"city":"Bonn"}',
        "status": "completed",
    }
    assert fourth == second | {"id": "fc_shelf10"}
    deltas = [payload for payload in shown if payload["type"] == "response.function_call_arguments.done"]
    assert [(done["name"], done["item_id"], done["output_index"]) for done in deltas] == [
        ("weather", "fc_shelf8", 1),
        ("weather", "fc_shelf10", 3),
    ]


def test_a_call_cut_by_the_limit_is_incomplete():
    shown = payloads(render([Queued(0), Rest((Call("1", "f", '{"a', complete=False),), 9, True), CUT]))
    assert shown[-1]["response"]["output"][0]["status"] == shown[-1]["response"]["status"] == "incomplete"


def test_what_was_asked_for_stands_in_the_response():
    tool = {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": None}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None}
    asked = msgspec.structs.replace(ECHO, tools=[tool], tool_choice=choice, max_tool_calls=3, format=form)
    shown = response_object("resp_1", decode_echo(encode_echo(asked)), "completed", [], DONE)
    assert (shown["tools"], shown["tool_choice"], shown["max_tool_calls"]) == ([tool], choice, 3)
    assert shown["text"] == {"format": form} and response_object("r", ECHO, "queued", [], None)["tools"] == []


def test_a_stored_call_and_its_output_are_shown_with_every_field():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert render_item(Item("fc_1", call)) == call | {"id": "fc_1", "status": "completed"}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]}
    assert render_item(Item("fco_1", output)) == output | {"id": "fco_1", "status": "completed"}
