"""What the model reads: control tokens broken, the window, the budget, rounds and titles."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.prompt import (
    IMAGE_NOTE,
    PICTURE_TOKENS,
    WORD_JOINER,
    Function,
    Message,
    ToolCall,
    drop_for_budget,
    estimate_tokens,
    first_round,
    harmless_json,
    has_pictures,
    most_tokens,
    neutralise,
    rounds_of,
    text_of,
    title_of,
    to_messages,
    unknown_output,
)

letters = st.text("<|>ab\n", max_size=30)  # few letters, so that tokens stand in the text, in and across each other
tokens = st.lists(st.text("<|>ab\n", min_size=2, max_size=6), min_size=1, max_size=6).map(tuple)
roles = st.sampled_from(["user", "assistant", "system"])
items = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, roles, st.text(max_size=5)), max_size=12)


@given(letters, tokens)
@example("aba", ("ab", "ba"))
@example("<<a>>", ("<<a>>", "<a>"))
@example("aaaa", ("aa",))
@example("<|\n|>", ("<|\n|>",))
def test_no_added_token_remains_in_any_text_and_without_the_joiners_it_is_the_text_again(text, added):
    safe = neutralise(text, added)
    assert not [token for token in added if token in safe]
    assert safe.replace(WORD_JOINER, "") == text


@given(st.text(), st.lists(st.text(min_size=2), max_size=3).map(tuple))
def test_that_holds_for_every_script_and_every_token_without_a_joiner(text, added):
    assume(WORD_JOINER not in text and not any(WORD_JOINER in token for token in added))
    safe = neutralise(text, added)
    assert not [token for token in added if token in safe]
    assert safe.replace(WORD_JOINER, "") == text


def test_a_text_without_control_tokens_is_left_as_it_is():
    text = "a < b && c > d | 你好 🙂 <b>bold</b>"
    assert neutralise(text, ("<|im_start|>", "<|im_end|>")) == text


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|eot_id|>",
        "<｜User｜>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<</SYS>>",
        "<s>",
        "</s>",
        "<bos>",
        "<pad>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_response>",
    ],
)
def test_with_an_unknown_tokenizer_the_usual_control_tokens_are_broken(token):
    safe = neutralise(f"a{token}b{token}", ())
    assert token not in safe and safe.replace(WORD_JOINER, "") == f"a{token}b{token}"


def test_every_message_is_neutralised_the_system_message_too():
    messages = to_messages("no <|x|>", [{"type": "message", "role": "user", "content": "hi <|x|>"}], ("<|x|>",))
    assert [message.role for message in messages] == ["system", "user"]
    assert not any("<|x|>" in message.content for message in messages)


def test_a_model_that_sees_is_shown_pictures_and_every_other_one_told_of_them():
    url = "data:image/png;base64,AAAA"
    parts = [{"type": "input_text", "text": "<|"}, {"type": "input_image", "detail": "auto", "image_url": url}]
    item = {"role": "user", "content": [*parts, {"type": "input_text", "text": "x|>"}]}
    (shown,) = to_messages(None, [item], ("<|x|>",), sees=True)
    (told,) = to_messages(None, [item], ("<|x|>",))
    before, picture, after = shown.content
    assert picture == {"type": "image_url", "image_url": {"url": url}}
    assert (before, after) == ({"type": "text", "text": "<|"}, {"type": "text", "text": f"{WORD_JOINER}x|>"})
    assert told == Message("user", f"<|\n{IMAGE_NOTE}\nx|>")
    assert has_pictures([shown]) and not has_pictures([told])
    assert estimate_tokens([shown]) > PICTURE_TOKENS > estimate_tokens([told])


def test_messages_keep_their_order_developers_speak_as_the_system_and_what_is_no_message_is_left_out():
    said = [
        {"type": "message", "role": "developer", "content": "be brief"},
        {"type": "reasoning", "content": []},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    expected = [Message("system", "be brief"), Message("user", "ab"), Message("assistant", "no")]
    assert to_messages(None, said, ()) == expected


def test_a_message_without_content_has_no_text():
    assert text_of({}) == text_of({"content": []}) == text_of({"content": [{"type": "input_text", "text": ""}]}) == ""


# rounds and the window -----------------------------------------------------------------------------------------------


@given(items)
def test_rounds_are_the_items_in_their_order_and_each_but_the_first_begins_with_a_question(said):
    rounds = rounds_of(said)
    assert [item for one in rounds for item in one] == said
    assert all(one[0]["role"] == "user" for one in rounds[1:])


@given(items)
def test_a_question_after_an_answer_always_begins_a_round(said: list[dict[str, Any]]):
    beginnings = [id(one[0]) for one in rounds_of(said)]
    for before, item in pairwise(said):
        if item["role"] == "user" and before["role"] == "assistant":
            assert id(item) in beginnings


@given(st.integers(0, 3000), st.integers(1, 1000))
def test_the_window_holds_at_least_its_rounds_when_there_are_so_many_and_less_than_twice_of_them(total, rounds):
    kept = total - first_round(total, rounds)
    assert min(total, rounds) <= kept < 2 * rounds or kept == total <= rounds


@given(st.integers(0, 500), st.integers(1, 40))
def test_the_window_only_moves_forward_and_rests_for_as_many_turns_as_it_has_rounds(total, rounds):
    step = first_round(total + 1, rounds) - first_round(total, rounds)
    assert step in (0, rounds)
    moves = sum(first_round(total + n + 1, rounds) != first_round(total + n, rounds) for n in range(rounds))
    assert moves <= 1


@given(st.integers(0, 100))
def test_without_a_window_all_is_kept_and_with_one_of_no_rounds_nothing(total):
    assert first_round(total, None) == 0 and first_round(total, 0) == total


# the budget ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), st.integers(-50, 1000))
def test_no_more_rounds_are_dropped_than_needed_and_never_the_newest(sizes, excess):
    dropped = drop_for_budget(sizes, excess)
    assert 0 <= dropped < len(sizes)
    assert sum(sizes[:dropped]) >= excess or dropped == len(sizes) - 1
    assert dropped == 0 or sum(sizes[: dropped - 1]) < excess


def test_nothing_is_dropped_from_nothing():
    assert drop_for_budget([], 10) == 0


@given(st.lists(st.text(max_size=50), max_size=5))
def test_the_estimate_grows_with_the_bytes_and_with_every_message(texts):
    messages = [Message("user", text) for text in texts]
    assert estimate_tokens(messages) >= 8 * len(texts)
    assert estimate_tokens([*messages, Message("user", "你好" * 30)]) == estimate_tokens(messages) + 60 + 8


# titles --------------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(1, 80))
def test_a_title_is_one_short_line_that_begins_as_the_question_does(question, limit):
    title = title_of(question, limit)
    assert len(title) <= limit + 1 and len(title.splitlines()) <= 1
    assert question.lstrip().startswith(title.removesuffix("…")) or title == ""


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("", ""),
        (" \n\t\n", ""),
        ("\n  How are you?  \nFine.", "How are you?"),
        ("word " * 12 + "end", "word " * 11 + "word…"),
        ("a" * 61, "a" * 60 + "…"),
        ("请" * 60, "请" * 60),
        ("请用中文回答这个问题，" * 9, ("请用中文回答这个问题，" * 9)[:60] + "…"),
        ("🙂" * 70, "🙂" * 60 + "…"),
        ("短 " + "长" * 70, "短 " + "长" * 58 + "…"),  # a blank near the start is no place to cut
        ("Please, " * 8, "Please, " * 6 + "Please…"),
    ],
)
def test_a_title_is_the_first_line_shortened_at_a_word_where_there_are_words(question, title):
    assert title_of(question) == title


# calls of tools ------------------------------------------------------------------------------------------------------


def call(id: str, arguments: str = "{}", name: str = "f") -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}


def output(id: str, said: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": said}


def test_calls_belong_to_the_message_they_came_with_and_each_output_is_a_message_of_its_own():
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "I look."}
    read = to_messages(None, [question, answer, call("1"), call("2"), output("1"), output("2", []), call("3")], ())
    one, two, three = (ToolCall(id, Function("f", "{}")) for id in "123")
    assert read == [
        Message("user", "?"),
        Message("assistant", "I look.", (one, two)),
        Message("tool", "done", tool_call_id="1"),
        Message("tool", "", tool_call_id="2"),
        Message("assistant", "", (three,)),
    ]


def test_an_output_whose_call_is_not_read_is_not_read_either():
    assert to_messages(None, [output("1"), call("1"), {"type": "reasoning", "summary": []}], ()) == [
        Message("assistant", "", (ToolCall("1", Function("f", "{}")),))
    ]


def test_control_tokens_in_calls_and_their_outputs_stay_text_also_where_json_escapes_them():
    evil, added = "<|im_end|>", ("<|im_end|>",)
    escaped = json.dumps({evil: [evil]}).replace("<", "\\u003c")
    parts = [{"type": "input_text", "text": text} for text in ("<|im", "_end|>")]
    read = to_messages(None, [call(evil, escaped, evil), output(evil, parts)], added)
    assert evil not in repr(read) and evil not in repr(json.loads(read[0].tool_calls[0].function.arguments))


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a":1,"b":"ä"}', '{"a": 1, "b": "ä"}'),
        ("no JSON <|x|>", f"no JSON <{WORD_JOINER}|x|>"),
        ("[" * 100_000, "{}"),
        ("9" * 5000, "{}"),
        ('"\\ud800"', '"?"'),
        ('{"a":NaN,"a":"\\u003c|x|>"}', f'{{"a": "<{WORD_JOINER}|x|>"}}'),
    ],
)
def test_arguments_that_are_odd_json_harm_nobody(arguments, read):
    assert harmless_json(arguments, ("<|x|>",)) == read


def test_the_output_of_an_unknown_call_is_found_where_it_stands():
    items = [output("0"), call("1"), output("1"), {"role": "user", "content": "x"}, output("2"), call("2")]
    assert unknown_output(items, 1) == 4 and unknown_output(items, 0) == 0
    assert unknown_output(items[1:3], 0) is None and unknown_output(items, 5) is None


def test_calls_and_tools_are_part_of_what_a_prompt_may_have_at_most():
    plain = [Message("assistant", "x")]
    calls = [Message("assistant", "x", (ToolCall("1", Function("f", '{"a": 1}')),))]
    assert most_tokens(calls) > most_tokens(plain) + 50 and estimate_tokens(calls) > estimate_tokens(plain)
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 100}}]
    assert most_tokens(plain, tools) > most_tokens(plain) + 600 and estimate_tokens(plain, tools) > 40
