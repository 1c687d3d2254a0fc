"""What a Responses request may say: every odd body is a typed refusal that names its field."""

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gateway.api import response_input as module
from gateway.api.response_image import images_replaced, kept
from gateway.api.response_input import check_model, parse_create, parse_input, question_of
from gateway.api.response_output import render_item
from gateway.api.response_tools import check_parser
from gateway.body import parse_json
from gateway.conversations import Item
from gateway.engine import ModelFacts
from gateway.errors import BadRequest, NotFound, UnknownParameter, UnsupportedParameter
from gateway.events import Form

FIELDS = sorted(module._FIELDS | set(module._NOT_YET))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, width=32) | st.text()
)
values = st.recursive(
    scalars
    | st.sampled_from(
        ["user", "assistant", "message", "input_text", "refusal", "deskmate:window", "auto", "function", "f"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "role",
                    "content",
                    "text",
                    "id",
                    "rounds",
                    "format",
                    "refusal",
                    "phase",
                    "x",
                    "name",
                    "schema",
                    "tools",
                    "mode",
                    "parameters",
                    "strict",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["input_text", "refusal", "input_image"]) | values}) | values
contents = st.text() | st.lists(parts, max_size=3) | values
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | values, "content": contents})
calls = st.fixed_dictionaries(
    {"type": st.just("function_call"), "call_id": st.text() | values, "name": st.text(), "arguments": st.text()}
)
outputs = st.fixed_dictionaries(
    {"type": st.just("function_call_output"), "call_id": st.text() | values, "output": contents}
)
references = st.fixed_dictionaries({"type": st.just("item_reference"), "id": st.text() | values})
items = messages | calls | outputs | references


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=5))
@example({"stop": [""]})
@example({"conversation": {}})
@example({"context_management": [{"type": "deskmate:window", "rounds": True}]})
@example({"context_management": [{"type": []}]})
def test_any_body_is_understood_or_a_bad_request(body):
    try:
        parse_json(json.dumps(body).encode())  # what reaches us has passed this
        create = parse_create(body)
    except BadRequest as refused:
        json.dumps(refused.body())
        return
    create.window_rounds()
    create.compact_threshold()
    msgspec.json.encode(create.wishes().form)
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
        parsed = parse_input(value, references=True)
    except BadRequest as refused:
        assert refused.param and refused.param.startswith("input")
        json.dumps(refused.body())
        return
    kinds = {"message", "function_call", "function_call_output", "item_reference"}
    assert parsed and all(item["type"] in kinds for item in parsed)
    assert isinstance(question_of(parsed), str)
    assert parse_input(parsed, references=True) == parsed  # what is stored may be sent again, as a no-trace page does


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


# tools and the form of the text --------------------------------------------------------------------------------------

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "g", "description": "does g"}
ENGINE_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
ENGINE_OTHER = {"type": "function", "function": {"name": "g", "description": "does g"}}
NAMED = {"type": "function", "name": "g"}
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}


def wishes(**body):
    return parse_create({"input": "x", **body}).wishes()


def test_a_request_without_tools_and_form_asks_for_nothing():
    for body in ({}, {"tools": []}, {"text": {"format": {"type": "text"}}}, {"tools": [TOOL], "tool_choice": "none"}):
        assert wishes(**body).form == Form() and not wishes(**body).form


def test_tools_go_to_the_engine_as_they_were_given_and_are_echoed_with_every_field():
    asked = wishes(tools=[TOOL, OTHER], parallel_tool_calls=False, max_tool_calls=2, stream=True)
    assert asked.form == Form((ENGINE_TOOL, ENGINE_OTHER), "auto", parallel=False, most_calls=2)
    assert asked.tools == [TOOL | {"description": None}, OTHER | {"parameters": None, "strict": None}]
    assert asked.choice == "auto" and asked.format is None


@pytest.mark.parametrize(
    ("choice", "tools", "mode"),
    [
        ("none", (), "auto"),
        ("required", (ENGINE_TOOL, ENGINE_OTHER), "required"),
        (NAMED, (ENGINE_TOOL, ENGINE_OTHER), {"type": "function", "function": {"name": "g"}}),
        (ALLOWED, (ENGINE_OTHER,), "required"),
    ],
)
def test_the_choice_of_tools_is_what_the_engine_is_given(choice, tools, mode):
    asked = wishes(tools=[TOOL, OTHER], tool_choice=choice)
    assert (asked.form.tools, asked.form.choice, asked.choice) == (tools, mode, choice)


def test_a_form_of_json_goes_to_the_engine_in_its_words_and_is_shown_at_once_unless_somebody_reads_along():
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = wishes(text={"format": schema})
    engine = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    assert asked.form == Form(format=engine, at_once=True)
    assert asked.format == schema | {"description": None}
    assert wishes(text={"format": {"type": "json_object"}}, stream=True).form == Form(format={"type": "json_object"})


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, UnsupportedParameter, "tools[0].type"),
        ({"tools": [TOOL, {"type": "custom", "name": "c"}]}, UnsupportedParameter, "tools[1].type"),
        ({"tools": [TOOL, TOOL]}, BadRequest, "tools"),
        ({"tools": [TOOL] * 129}, BadRequest, "tools"),
        ({"tools": [TOOL | {"name": "a b"}]}, BadRequest, "tools[0].name"),
        ({"tools": [TOOL | {"name": "f" * 65}]}, BadRequest, "tools[0].name"),
        ({"tools": [TOOL | {"parameters": []}]}, BadRequest, "tools[0].parameters"),
        ({"tools": [TOOL | {"parameters": {"x": "y" * 70_000}}]}, BadRequest, "tools[0].parameters"),
        ({"tools": [TOOL | {"strict": 1}]}, BadRequest, "tools[0].strict"),
        ({"tools": [TOOL | {"defer_loading": True}]}, UnknownParameter, "tools[0].defer_loading"),
        ({"tool_choice": "required"}, BadRequest, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, BadRequest, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": NAMED}, BadRequest, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, UnsupportedParameter, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": ALLOWED}, BadRequest, "tool_choice.tools[0].name"),
        ({"tools": [OTHER], "tool_choice": ALLOWED | {"mode": "none"}}, BadRequest, "tool_choice.mode"),
        ({"tools": [OTHER], "tool_choice": ALLOWED | {"tools": []}}, BadRequest, "tool_choice.tools"),
        ({"tools": [OTHER], "tool_choice": ALLOWED | {"tools": [TOOL | {"type": "mcp"}]}}, BadRequest, None),
        ({"max_tool_calls": 0}, BadRequest, "max_tool_calls"),
        ({"text": {"format": {"type": "grammar"}}}, BadRequest, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, BadRequest, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, BadRequest, "text.format.name"),
        ({"text": {"format": "json"}}, BadRequest, "text.format"),
        ({"text": {"verbosity": "low"}}, UnsupportedParameter, "text.verbosity"),
        ({"text": {"form": {}}}, UnknownParameter, "text.form"),
        ({"include": ["wibble.logprobs"]}, UnsupportedParameter, "include[0]"),
        ({"reasoning": {"deep": True}}, UnknownParameter, "reasoning.deep"),
        ({"service_tier": "first"}, BadRequest, "service_tier"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_met_is_refused_by_its_place(body, kind, param):
    with pytest.raises(kind) as refused:
        parse_create({"input": "x", **body})
    assert param is None or refused.value.param == param


def test_what_changes_nothing_here_is_taken():
    parse_create({
        "reasoning": {"effort": "low", "summary": "auto"}, "service_tier": "flex", "prompt_cache_retention": "24h",
        "include": ["reasoning.encrypted_content"], "stream_options": {"include_obfuscation": True}, "user": "me",
        "text": {"verbosity": "medium"}, "tools": [TOOL | {"defer_loading": None}],
    })  # fmt: skip


def test_tools_for_a_model_whose_calls_nobody_understands_are_refused_with_the_setting_that_helps():
    model = ModelFacts("small", 4096, 4)
    with pytest.raises(UnsupportedParameter, match=r"`small`.*DESKMATE_TOOL_PARSER") as refused:
        check_parser(wishes(tools=[TOOL]).form, model)
    assert refused.value.param == "tools"
    check_parser(wishes(tools=[TOOL], tool_choice="none").form, model)
    check_parser(wishes(tools=[TOOL]).form, None)
    check_parser(wishes(text={"format": {"type": "json_object"}}).form, model)


def test_calls_and_outputs_are_stored_compact_and_taken_back_as_they_were_shown():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
    output = {"type": "function_call_output", "call_id": "c", "output": "done"}
    shown = [call | {"id": "fc_1", "status": "completed", "namespace": None}]
    shown += [output | {"id": "fco_1", "status": "completed", "output": [{"type": "input_text", "text": "done"}]}]
    assert parse_input(shown) == [call, output]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "function_call", "call_id": "", "name": "f", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}, "input[0].arguments"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "x": 1}, "input[0].x"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({"type": "function_call_output", "call_id": "c", "output": [{"type": "x"}]}, "input[0].output[0].type"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "web_search_call"}, "input[0].type"),
        *(
            ({"role": "user", "content": [{"type": "input_image", **image}]}, f"input[0].content[0].{field}")
            for image, field in (
                ({}, "image_url"),
                ({"image_url": "https://example.org/a.png"}, "image_url"),
                ({"image_url": "http://169.254.169.254/"}, "image_url"),
                ({"image_url": "data:text/html;base64,AAAA"}, "image_url"),
                ({"image_url": "data:image/png;base64,A"}, "image_url"),
                ({"image_url": "data:image/png;base64,"}, "image_url"),
                ({"image_url": "data:image/png;base64,ÄÄÄÄ"}, "image_url"),
                ({"image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url"),
                ({"file_id": "file_1"}, "file_id"),
                ({"image_url": "data:image/png;base64,AAAA", "detail": "x"}, "detail"),
                ({"image_url": "data:image/png;base64,AAAA", "x": 1}, "x"),
            )
        ),
    ],
)
def test_an_item_that_is_not_understood_is_refused_by_its_place(item, param):
    with pytest.raises(BadRequest) as refused:
        parse_input([item])
    assert refused.value.param == param


def test_an_item_that_is_only_named_is_a_reference_with_or_without_its_type():
    named = {"type": "item_reference", "id": "msg_1"}
    assert parse_input([named, {"id": "msg_1"}, named | {"id": "msg_2"}], references=True) == [
        named,
        named,
        named | {"id": "msg_2"},
    ]


@pytest.mark.parametrize("sees", [False, True])
def test_a_picture_is_kept_for_a_model_that_sees_and_its_item_may_be_sent_back(sees):
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": None}
    (parsed,) = parse_input([{"role": "user", "content": [{"type": "input_text", "text": "a"}, image]}])
    item = kept(parsed, sees)
    picture = {"image_url": "data:image/png;base64,AAAA"} if sees else {}
    assert item["content"] == [{"type": "input_text", "text": "a"}, {"type": "input_image", "detail": "auto"} | picture]
    assert parse_input([render_item(Item("msg_1", item))]) == [item]
    assert images_replaced([item, item]) == (0 if sees else 2)


def test_no_model_sees_the_pictures_of_tools_and_of_other_roles():
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    told = {"role": "system", "content": [image]}
    assert images_replaced([kept(item, True) for item in parse_input([output, told])]) == 2
