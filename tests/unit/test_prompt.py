"""What the model reads: control tokens broken, the window, the budget, rounds and titles."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.prompt import (
    WORD_JOINER,
    Message,
    drop_for_budget,
    estimate_tokens,
    first_round,
    neutralise,
    rounds_of,
    text_of,
    title_of,
    to_messages,
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
