"""What stands for a context that was made short: which items are replaced, what is kept word for word."""

from typing import Any

import pytest

from gateway.compaction import Compact, asked, compact, decode, encode, kept, opened, whole
from gateway.prompt import SUMMARY_NOTE, current, to_messages, unknown_output


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text}


def call(id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}


def output(id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": id}


RULE = {"type": "message", "role": "developer", "content": "rule"}
SEAL = {"type": "compaction", "encrypted_content": "x"}


@pytest.mark.parametrize(
    ("context", "at"),
    [
        ([], 0),
        ([user("a")], 0),
        ([RULE, user("a"), user("b")], 0),
        ([user("a"), said("b"), user("c")], 2),
        ([user("a"), said("b"), RULE, user("c")], 2),
        ([user("a"), call("1"), output("1")], 1),
        ([user("a"), call("1"), call("2"), output("1"), output("2")], 1),
        ([user("a"), call("1"), output("1"), call("2"), output("2"), user("b")], 3),
        ([user("a"), call("1"), said("hm"), output("1")], 1),
        ([user("a"), said("b")], 2),
    ],
)
def test_what_was_asked_begins_behind_what_was_answered(context, at):
    assert asked(context) == at


def test_an_item_that_stands_for_everything_hides_what_came_before_it_and_one_that_does_not_hides_nothing():
    by_hand = opened(SEAL, Compact("old", ("rule",)))
    by_itself = opened(SEAL, Compact("new", (), (user("kept"), call("1"))))
    assert list(current([user("a"), by_hand, user("b")])) == [user("a"), by_hand, user("b")]
    assert list(current([user("a"), by_itself, user("b")])) == [by_itself, user("b")]
    assert kept([user("a"), by_hand, user("b"), by_itself, user("c")]) == [user("kept"), user("c")]
    assert unknown_output([by_itself, output("1")], 1) is None and unknown_output([by_hand, output("1")], 1) == 1


def test_the_newest_words_of_people_are_kept_as_far_as_they_fit_and_what_was_asked_always_is():
    context = [RULE, user("1" * 900), user("2" * 400), user("3" * 200), said("b"), user("4" * 5000)]
    content = whole(context, 5, "sum", 1000)  # a quarter of the threshold: 750 bytes; the summary tells the others
    assert content == Compact("sum", ("rule",), (user("2" * 400), user("3" * 200), user("4" * 5000)))
    assert decode(encode(content)) == content
    again = whole([*context, opened(SEAL, content), said("c"), call("1"), output("1")], 8, "next", 1000)
    assert again == Compact("next", ("rule",), (user("2" * 400), user("3" * 200), call("1"), output("1")))
    messages = to_messages("system", [opened(SEAL, again)], ())
    assert [(message.role, message.content[:40]) for message in messages] == [
        ("system", "system"), ("system", "rule"), ("system", SUMMARY_NOTE + "next"), ("user", "2" * 40),
        ("user", "3" * 40), ("assistant", ""), ("tool", "1"),
    ]  # fmt: skip


def test_an_earlier_compaction_by_hand_is_summed_up_with_its_instructions():
    by_hand = opened(SEAL, Compact("old", ("rule",)))
    assert compact([user("a"), by_hand, RULE], "sum") == Compact("sum", ("rule", "rule"))
