"""What a Responses request may say: every odd body is a typed refusal that names its field."""

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gateway.api import response_input as module
from gateway.api.response_input import check_model, parse_create, parse_input, question_of
from gateway.body import parse_json
from gateway.errors import BadRequest, NotFound, UnknownParameter, UnsupportedParameter

FIELDS = sorted(module._FIELDS | set(module._NOT_YET))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, width=32) | st.text()
)
values = st.recursive(
    scalars | st.sampled_from(["user", "assistant", "message", "input_text", "refusal", "deskmate:window", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "id", "rounds", "format", "refusal", "phase", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["input_text", "refusal", "input_image"]) | values}) | values
items = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant"]) | values,
        "content": st.text() | st.lists(parts, max_size=3) | values,
    }
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=5))
@example({"stop": [""]})
@example({"conversation": {}})
@example({"context_management": [{"type": "deskmate:window", "rounds": True}]})
def test_any_body_is_understood_or_a_bad_request(body):
    try:
        parse_json(json.dumps(body).encode())  # what reaches us has passed this
        create = parse_create(body)
    except BadRequest as refused:
        json.dumps(refused.body())
        return
    create.window_rounds()
    msgspec.json.encode(create.sampling_extra())
    assert create.conversation_id is None or isinstance(create.conversation_id, str)


@given(st.lists(items | values, max_size=3) | st.text() | st.none())
@example([{"role": "user", "content": [{"type": []}]}])
@example([{"role": "user", "content": [{"type": ["input_text"], "text": "x"}]}])
@example([{"role": [], "content": "x"}])
@example(["just text"])
@example([None])
def test_any_input_is_items_or_a_bad_request(value):
    try:
        parsed = parse_input(value)
    except BadRequest as refused:
        assert refused.param and refused.param.startswith("input")
        json.dumps(refused.body())
        return
    assert parsed and all(item["type"] == "message" and item["role"] for item in parsed)
    assert isinstance(question_of(parsed), str)
    assert parse_input(parsed) == parsed  # what is stored may be sent again, as a no-trace page does


@pytest.mark.parametrize("name", module._NOT_YET)
def test_what_is_not_there_yet_is_refused_by_its_name_unless_it_asks_for_nothing(name):
    for nothing in module._NOT_YET[name]:
        parse_create({"input": "x", name: nothing})
    with pytest.raises(UnsupportedParameter, match=f"`{name}` is not supported yet") as refused:
        parse_create({"input": "x", name: {"some": "wish"}})
    assert refused.value.param == name


@pytest.mark.parametrize("name", sorted(ResponseCreateParamsBase.__annotations__))
def test_no_field_of_the_official_client_is_taken_and_then_ignored(name):
    """Each is honoured, or refused by its name whatever it holds; those we have not heard of are unknown."""
    if name in module._FIELDS:
        return
    with pytest.raises((UnsupportedParameter, UnknownParameter), match=f"`{name}`"):
        parse_create({"input": "x", name: {"some": "wish"}})


@pytest.mark.parametrize("name", module._LIMITS)
def test_a_number_outside_its_range_is_refused_with_its_limits_and_the_limits_themselves_are_taken(name):
    least, most = module._LIMITS[name]
    for value in (least, most):
        parse_create({"input": "x", name: value})
    for value in (least - 1, most + 1):
        with pytest.raises(BadRequest) as refused:
            parse_create({"input": "x", name: value})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"conversation": {"id": 1}}, "conversation"),
        ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
        ({"store": False, "background": True}, "background"),
        ({"store": False, "conversation": "c"}, "store"),
        ({"context_management": [{"type": "deskmate:window", "rounds": -1}]}, "context_management"),
        ({"context_management": [{"type": "deskmate:window", "rounds": 5, "more": 1}]}, "context_management"),
        ({"context_management": [{"type": "deskmate:window"}]}, "context_management"),
        ({"truncation": "some"}, "truncation"),
    ],
)
def test_a_refusal_names_the_field(body, param):
    with pytest.raises(BadRequest) as refused:
        parse_create({"input": "x"} | body)
    assert (refused.value.param or "").startswith(param)


def test_null_is_the_default_of_every_field():
    nulls = dict.fromkeys([*module._FIELDS, *module._NOT_YET])
    assert parse_create(nulls | {"input": "x"}) == parse_create({"input": "x"})


def test_one_text_part_is_stored_as_its_text_and_several_stay_parts():
    one = {"role": "user", "content": [{"type": "input_text", "text": "hi", "extra": 1}]}
    two = {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
    assert [item["content"] for item in parse_input([one, two])] == ["hi", two["content"]]


def test_what_an_answer_carries_may_be_sent_back_and_an_unknown_field_of_an_item_not():
    answer = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": "final_answer"}
    content = [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]
    expected = {"type": "message", "role": "assistant", "content": "hi", "phase": "final_answer"}
    assert parse_input([answer | {"content": content}]) == [expected]
    with pytest.raises(UnknownParameter) as refused:
        parse_input([{"role": "user", "content": "x", "name": "Ada"}])
    assert refused.value.param == "input[0].name"


def test_a_conversation_is_named_by_its_id_or_by_an_object():
    assert parse_create({"conversation": "c1"}).conversation_id == "c1"
    assert parse_create({"conversation": {"id": "c1"}}).conversation_id == "c1"
    assert parse_create({}).conversation_id is None


def test_only_the_served_model_and_its_other_names_are_found():
    for asked in (None, "", "served", "alias"):
        check_model(asked, "served", ("alias",))
    check_model("anything", None, ())  # not known yet: it waits and is asked for what there is then
    with pytest.raises(NotFound) as refused:
        check_model("other", "served", ("alias",))
    assert refused.value.code == "model_not_found" and refused.value.param == "model"
