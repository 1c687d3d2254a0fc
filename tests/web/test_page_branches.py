"""Branches and windows side by side, in Chromium against the scripted gateway: what is asked of it, what is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect

from tests.web.browsing import PHONE, answer, ask, until
from tests.web.mock_gateway import MockGateway, Script

pytestmark = pytest.mark.browser

ASK_ELSEWHERE = """async ([conversation, input]) => {
  const { version } = await (await fetch(`/v1/conversations/${conversation}`)).json();
  const headers = { "content-type": "application/json", "idempotency-key": input, "if-match": String(version) };
  const body = JSON.stringify({ input, conversation, store: true });
  return (await fetch("/v1/responses", { method: "POST", headers, body })).status;
}"""


@pytest.fixture
def gateway() -> Iterator[MockGateway]:
    with MockGateway() as mock:
        yield mock


def opened(page: Page) -> str:
    return page.url.partition("#/c/")[2]


def edit(page: Page, question: str, fresh: str) -> None:
    bubble = page.locator(".question", has_text=question)
    bubble.hover()
    bubble.get_by_label("Edit the question").click()
    page.fill(".editor textarea", fresh)
    page.press(".editor textarea", "Enter")


def completed(page: Page, count: int) -> None:
    expect(page.locator(".answer[data-status=completed]")).to_have_count(count)


def texts(page: Page) -> list[str]:
    return page.locator(".question .bubble, .answer .markdown").all_inner_texts()


def titles(gateway: MockGateway) -> list[str]:
    return [one["metadata"]["deskmate:title"] for one in gateway.conversations.values()]


def focused(page: Page) -> Locator:
    return page.locator(":focus")


# --- branches ---------------------------------------------------------------------------------------------------------


def test_an_edited_question_begins_a_branch_and_arrows_lead_between_them(visit, gateway):
    conversation = gateway.add_conversation(
        "Disks", "Which disk?", "The second.", "Why?", "It is new.", "Sure?", "Yes."
    )
    gateway.scripts["How so"] = Script("Because.")
    page = visit().open()
    page.click(".list a")
    completed(page, 3)
    edit(page, "Why?", "How so?")
    expect(answer(page)).to_contain_text("Because.")
    assert texts(page) == ["Which disk?", "The second.", "How so?", "Because."]
    expect(page.locator(".arrows:visible .place")).to_have_text("2 / 2")
    branch = opened(page)
    metadata = gateway.conversations[branch]["metadata"]
    assert metadata.pop("deskmate:branched_at").isdigit()
    assert metadata == {
        "deskmate:title": "Disks", "deskmate:root": conversation, "deskmate:branch_from": conversation,
        "deskmate:branch_of": f"resp_{conversation}_0",
    }  # fmt: skip
    assert len(gateway.items[conversation]) == 6

    page.get_by_label("Version before").press("Enter")
    expect(page.locator(".arrows:visible .place")).to_have_text("1 / 2")
    completed(page, 3)
    assert (opened(page), texts(page)[2:]) == (conversation, ["Why?", "It is new.", "Sure?", "Yes."])
    expect(focused(page)).to_have_accessible_name("Next version")
    expect(page.locator(".chat > [role=status]")).to_have_text("Version 1 of 2")
    focused(page).press("Enter")
    expect(page.locator(".arrows:visible .place")).to_have_text("2 / 2")
    assert opened(page) == branch
    page.go_back()
    expect(page.locator(".arrows:visible .place")).to_have_text("1 / 2")


def test_an_answer_is_asked_for_again_beside_the_first_one(visit, gateway):
    gateway.default = Script("One.")
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True).open()
    ask(page, "A number?")
    completed(page, 1)
    first = opened(page)
    gateway.default = Script("Two, this time.", hold_after=1)
    page.get_by_label("Answer again").click()
    expect(answer(page, "writing")).to_be_visible()
    expect(page.locator(".branching:visible")).to_have_count(0)
    gateway.release()
    completed(page, 1)
    assert texts(page) == ["A number?", "Two, this time."]
    assert "deskmate:branch_of" not in gateway.conversations[opened(page)]["metadata"]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_label("Version before").tap()
    expect(answer(page)).to_contain_text("One.")
    assert opened(page) == first


def test_the_list_has_one_entry_for_all_versions_and_deleting_it_deletes_them(visit, gateway):
    gateway.add_conversation("Another", "Hello?", "Hello.", age_seconds=60)
    page = visit().open()
    ask(page, "first words")
    completed(page, 1)
    for words in ("second words", "third words"):
        edit(page, texts(page)[0], words)
        expect(page.locator(".question .bubble")).to_have_text(words)
        completed(page, 1)
    expect(page.locator(".list li")).to_have_text(["first words", "Another"])
    row = page.locator(".list li", has_text="first words")
    row.hover()
    row.get_by_label("Rename").click()
    page.fill(".list li input", "many words")
    page.press(".list li input", "Enter")
    expect(page.locator(".list li").first).to_have_text("many words")
    until(lambda: titles(gateway) == ["Another"] + ["many words"] * 3)
    gateway.scripts["go on"] = Script("and on and on", hold_after=1)
    ask(page, "go on")
    expect(answer(page, "writing")).to_be_visible()
    row = page.locator(".list li", has_text="many words")
    row.hover()
    row.get_by_label("Delete").click()
    page.click("dialog .danger")
    expect(page.locator(".list li")).to_have_text(["Another"])
    expect(page.locator(".message")).to_have_count(0)
    assert len(gateway.conversations) == 1


def test_a_list_that_was_on_its_way_does_not_bring_back_what_was_deleted(visit, gateway):
    gateway.add_conversation("To delete", "Hello?", "Hello.")
    page = visit().open()
    row = page.locator(".list li", has_text="To delete")
    row.hover()
    row.get_by_label("Delete").click()
    gateway.add_conversation("From elsewhere", "Hello?", "Hello.")
    late: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/conversations?*", lambda route: late.append((route, route.fetch())), times=1)
    page.evaluate("dispatchEvent(new Event('focus'))")
    until(lambda: page.wait_for_timeout(10) or late)
    page.click("dialog .danger")
    expect(page.locator(".list li", has_text="To delete")).to_have_count(0)
    [(route, before)] = late
    assert len(before.json()["data"]) == 2
    route.fulfill(response=before)
    page.wait_for_timeout(100)
    expect(page.locator(".list li")).to_have_text(["From elsewhere"])


def test_a_branch_whose_question_is_refused_is_taken_back_and_can_be_tried_again(visit, gateway):
    conversation = gateway.add_conversation("Disks", "Which disk?", "The second.", "Why?", "It is new.")
    gateway.scripts["How so"] = Script(refuse=(429, "queue_full"), retry_after=12)
    page = visit().open()
    page.click(".list a")
    completed(page, 2)
    edit(page, "Why?", "How so?")
    expect(page.locator(".error-card")).to_contain_text("Try again in 12 s")
    assert list(gateway.conversations) == [conversation]
    assert opened(page) == conversation
    gateway.scripts["How so"] = Script("Because.")
    page.click(".error-card button")
    expect(answer(page)).to_contain_text("Because.")
    expect(page.locator(".arrows:visible .place")).to_have_text("2 / 2")


def test_a_branch_of_what_was_deleted_begins_with_a_copy(visit, gateway):
    gateway.add_conversation("Long", *[f"said {n}" for n in range(46)])
    gateway.origins_deleted = True
    page = visit().open()
    page.click(".list a")
    completed(page, 23)
    edit(page, "said 44", "something else")
    expect(answer(page)).to_contain_text("Certainly.")
    kept = [one["content"][0]["text"] for one in gateway.items[opened(page)]]
    assert kept == [f"said {n}" for n in range(44)] + ["something else", "Certainly."]


def test_escape_leaves_a_question_as_it_was_and_no_trace_has_no_versions(visit, gateway):
    page = visit().open()
    ask(page, "as it was")
    completed(page, 1)
    page.locator(".question").hover()
    page.get_by_label("Edit the question").click()
    page.fill(".editor textarea", "changed")
    page.press(".editor textarea", "Escape")
    expect(page.locator(".question .bubble")).to_have_text("as it was")
    expect(focused(page)).to_have_accessible_name("Edit the question")
    page.click("#no-trace")
    ask(page, "quietly")
    completed(page, 1)
    expect(page.locator(".branching")).to_have_count(0)
    assert len(gateway.conversations) == 1


# --- two windows ------------------------------------------------------------------------------------------------------


def test_a_question_to_a_busy_conversation_is_kept_and_sent_after_the_answer_that_goes_on(visit, gateway):
    gateway.scripts["elsewhere"] = Script("An answer to somebody else.", hold_after=3)
    page = visit().open()
    ask(page, "first")
    completed(page, 1)
    page.locator(".question").hover()
    page.get_by_label("Edit the question").click()
    assert page.evaluate(ASK_ELSEWHERE, [opened(page), "asked elsewhere"]) == 200
    ask(page, "and me?")
    expect(page.locator(".offer")).to_contain_text("Another answer is still being written here")
    expect(answer(page, "writing")).to_contain_text("An answer")
    expect(page.locator("#ask")).to_have_value("and me?")
    page.press(".editor textarea", "Enter")  # no branch while an answer is written; what was typed stays
    expect(page.locator(".note")).to_contain_text("Another answer is still being written here")
    page.press(".editor textarea", "Escape")
    page.click("text=Send it after this answer")
    expect(page.locator(".offer")).to_contain_text("is sent when this answer ends")
    gateway.release()
    completed(page, 3)
    assert texts(page) == [
        "first", "Certainly.", "asked elsewhere", "An answer to somebody else.", "and me?", "Certainly.",
    ]  # fmt: skip
    expect(page.locator(".offer")).to_be_hidden()


def test_a_question_to_a_conversation_that_went_on_elsewhere_waits_for_its_reader(visit, gateway):
    page = visit().open()
    ask(page, "first")
    completed(page, 1)
    gateway.say_elsewhere(opened(page), "asked elsewhere", "Answered elsewhere.")
    ask(page, "second")
    expect(page.locator(".offer")).to_contain_text("Something was said here in another window")
    assert texts(page) == ["first", "Certainly.", "asked elsewhere", "Answered elsewhere."]
    expect(page.locator("#ask")).to_have_value("second")
    page.press("#ask", "Enter")
    completed(page, 3)
    assert texts(page)[-2:] == ["second", "Certainly."]


def test_a_new_name_given_elsewhere_does_not_stop_a_question(visit, gateway):
    page = visit().open()
    ask(page, "first")
    completed(page, 1)
    rename = "async ([id, body]) => (await fetch(`/v1/conversations/${id}`, { method: 'POST', body })).status"
    assert page.evaluate(rename, [opened(page), json.dumps({"metadata": {"deskmate:title": "Renamed"}})]) == 200
    ask(page, "second")
    completed(page, 2)
    assert texts(page) == ["first", "Certainly.", "second", "Certainly."]
    expect(page.locator("h1.title")).to_have_text("Renamed")


def test_a_conversation_deleted_elsewhere_is_closed_and_says_so(visit, gateway):
    page = visit().open()
    ask(page, "first")
    completed(page, 1)
    page.fill("#ask", "half a thought")
    gateway.conversations.clear()
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page.locator(".note")).to_contain_text("was deleted in another window")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".list li")).to_have_count(0)
    expect(page.locator("#ask")).to_have_value("half a thought")
