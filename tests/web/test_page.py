"""The chat page in Chromium against the scripted gateway: what a person sees and does, and what the page never does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.web.browsing import PHONE, STORED, answer, ask
from tests.web.mock_gateway import MockGateway, Script
from tests.web.xss_corpus import CORPUS

pytestmark = pytest.mark.browser

CHINESE = "语言模型是一种根据上文预测下一个词的程序。😀 它可能出错,**重要内容请核实**。👩‍🚀"
ALLOWED = re.compile(
    "P|BR|HR|H[1-6]|STRONG|EM|S|BLOCKQUOTE|UL|OL|LI|CODE|PRE|A|SPAN|TABLE|THEAD|TBODY|TR|TH|TD|DIV|BUTTON|svg|path"
)
AT_THE_END = """(() => {
  const { scrollHeight, scrollTop, clientHeight } = document.querySelector('.scroller');
  return scrollHeight - scrollTop - clientHeight < 80;
})()"""
ATTRIBUTES = """
  [...document.querySelectorAll('.thread *')].flatMap((node) => [...node.attributes].map((a) => `${a.name}=${a.value}`))
"""
TAGS_IN_ANSWERS = "[...new Set([...document.querySelectorAll('.markdown *')].map((node) => node.tagName))]"


@pytest.fixture
def gateway() -> Iterator[MockGateway]:
    with MockGateway() as mock:
        yield mock


# --- a turn -----------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_with_the_settings_and_its_answer_streams_in(visit, gateway):
    gateway.scripts["hello"] = Script("Hello **there**, colleague.", hold_after=3)
    page = visit().open()
    ask(page, "hello, who are you?")
    expect(page.locator(".question .bubble")).to_have_text("hello, who are you?")
    expect(answer(page, "writing")).to_contain_text("Hello")
    gateway.release()
    expect(answer(page).locator(".markdown strong")).to_have_text("there")
    expect(answer(page)).to_contain_text("tokens in")
    body = gateway.bodies[0]
    assert body.pop("conversation").startswith("conv_")
    assert body == {
        "input": "hello, who are you?", "stream": True, "background": True, "store": True, "truncation": "auto",
        "context_management": [{"type": "deskmate:window", "rounds": 5}],
        "temperature": 0.2, "top_p": 0.9, "max_output_tokens": 1024,
    }  # fmt: skip
    expect(page.locator(".list [aria-current]")).to_have_text("hello, who are you?")


def test_why_an_answer_took_so_long_is_told_on_demand(visit, gateway):
    page = visit(viewport=PHONE).open()
    ask(page, "hello?")
    took = answer(page).locator(".times")
    expect(took.locator("summary")).to_have_text("4.3 s")
    expect(took.locator("p")).to_be_hidden()
    took.locator("summary").click()
    why = "In line 2.5 s · reading 0.3 s · writing 1.5 s · 12 tokens were known already"
    expect(took.locator("p")).to_have_text(why)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_thoughts_are_shown_folded_while_they_come_and_afterwards(visit, gateway):
    told = "The printer may be **off**."
    gateway.scripts["printer"] = Script("Is it on?", thoughts=told, hold_thoughts=True, pause_seconds=0.15)
    page = visit().open()
    ask(page, "my printer is silent")
    fold = answer(page, "thinking").locator(".thoughts")
    expect(fold.locator("summary")).to_have_text("Thinking…")
    expect(fold.locator(".thought")).to_have_text(told)
    expect(fold.locator(".thought")).to_be_hidden()
    fold.locator("summary").click()
    expect(fold.locator(".thought")).to_be_visible()
    gateway.release()
    done = answer(page)
    expect(done.locator(".thoughts summary")).to_have_text(re.compile(r"Thought for \d+ s"))
    expect(done.locator(".markdown")).to_have_text("Is it on?")
    page.reload()
    expect(done.locator(".thoughts summary")).to_have_text("Thoughts")
    expect(done.locator(".thought")).to_have_text(told)
    expect(done.locator(".thought")).to_be_hidden()
    expect(done.locator(".markdown")).to_have_text("Is it on?")


def test_a_chinese_answer_in_pieces_of_64_bytes_arrives_whole(visit, gateway):
    gateway.scripts["什么"] = Script(CHINESE, chunk_bytes=64)
    page = visit(locale="zh-CN").open()
    ask(page, "什么是语言模型?")
    expect(answer(page).locator(".markdown")).to_have_text(CHINESE.replace("**", ""))


def test_stop_ends_the_answer_and_keeps_what_was_written(visit, gateway):
    gateway.scripts["story"] = Script("Once upon a time there was", hold_after=4)
    page = visit().open()
    ask(page, "a story")
    expect(answer(page, "writing")).to_contain_text("Once upon a time")
    page.click(".stop")
    expect(answer(page, "cancelled")).to_contain_text("Stopped")
    expect(answer(page, "cancelled").locator(".markdown")).to_have_text("Once upon a time")
    assert [turn.status for turn in gateway.turns.values()] == ["cancelled"]
    expect(page.locator(".send")).to_be_visible()


def test_a_reload_in_the_middle_of_an_answer_goes_on_showing_it(visit, gateway):
    gateway.scripts["long"] = Script("The first half. The second half.", hold_after=4)
    page = visit().open()
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("The first half.")
    page.reload()
    expect(page.locator(".question .bubble")).to_have_text("a long one")
    expect(answer(page, "writing")).to_contain_text("The first half.")
    gateway.release()
    expect(answer(page)).to_contain_text("The first half. The second half.")
    assert len(gateway.bodies) == 1


def test_a_stream_that_breaks_is_taken_up_where_it_broke(visit, gateway):
    gateway.scripts["break"] = Script("one two three four five six", hold_after=3)
    page = visit().open()
    ask(page, "break please")
    expect(answer(page, "writing")).to_contain_text("one two thre")
    gateway.cut_streams()
    expect(answer(page, "writing")).to_contain_text("Connection lost")
    gateway.release()
    expect(answer(page).locator(".markdown")).to_have_text("one two three four five six")
    assert any("starting_after=" in seen for seen in gateway.requests)
    assert len(gateway.bodies) == 1


def test_a_question_whose_answer_got_lost_on_the_way_is_not_asked_twice(visit, gateway):
    gateway.scripts["lost"] = Script("Found.", lose_first=True)
    page = visit().open()
    ask(page, "lost question")
    expect(answer(page).locator(".markdown")).to_have_text("Found.")
    assert (len(gateway.bodies), len(gateway.turns)) == (2, 1)


def test_a_no_trace_answer_whose_connection_breaks_ends_there_and_says_so(visit, gateway):
    gateway.default = Script("Nobody keeps this.", hold_after=3)
    page = visit().open()
    page.click("#no-trace")
    ask(page, "quietly")
    expect(answer(page, "writing")).to_contain_text("Nobody keep")
    gateway.cut_streams()
    expect(page.locator(".error-card")).to_contain_text("cannot be picked up again")
    expect(page.locator(".error-card button")).to_have_count(0)
    expect(page.locator(".answer .markdown")).to_have_text("Nobody keeps")


def test_the_place_in_line_is_shown_and_a_question_asked_while_loading_is_answered(visit, gateway):
    gateway.ready = False
    gateway.scripts["early"] = Script("Here I am.", queue=((3, 8.0),), progress=("loading",))
    page = visit().open()
    expect(page.locator(".stages")).to_contain_text("Load the weights")
    ask(page, "early bird")
    expect(answer(page, "queued")).to_contain_text("3rd in line, about 8 s")
    gateway.ready = True
    gateway.release()
    expect(answer(page)).to_contain_text("Here I am.")
    expect(page.locator(".start")).to_be_hidden()


def test_what_holds_an_answer_up_is_said_in_words_until_it_goes_on(visit, gateway):
    gateway.scripts["long"] = Script("The first half. The second half.", hold_after=4)
    page = visit(locale="zh-CN").open()
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("The first half.")
    for state, words in (("engine_lost", "模型中断"), ("resuming", "从中断处继续")):
        gateway.tell(state)
        expect(answer(page, "writing").locator(".state")).to_contain_text(words)
        expect(page.locator(".chat > [role=status]")).to_contain_text(words)
    page.reload()
    expect(answer(page, "writing").locator(".state")).to_contain_text("从中断处继续")
    gateway.release()
    expect(answer(page)).to_contain_text("The first half. The second half.")
    expect(answer(page).locator(".state")).to_be_hidden()


def test_leaving_a_running_answer_and_coming_back_shows_it(visit, gateway):
    gateway.scripts["slow"] = Script("Slow and steady wins.", hold_after=2)
    page = visit().open()
    ask(page, "slow one")
    expect(answer(page, "writing")).to_contain_text("Slow an")
    page.click("#new")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".list .dot")).to_be_visible()
    page.click(".list a:has-text('slow one')")
    gateway.release()
    expect(answer(page)).to_contain_text("Slow and steady wins.")


@pytest.mark.parametrize(
    ("refusal", "retry_after", "said"),
    [
        ((409, "conversation_locked"), None, "already being answered"),
        ((429, "queue_full"), 12, "Try again in 12 s"),
        ((503, "overloaded"), 5, "no new questions just now. Your chats are all there. Try again in 5 s"),
        ((503, "storage_unavailable"), None, "Nobody can answer right now"),
        ((400, "context_length_exceeded"), None, "longer than the model's context"),
    ],
)
def test_a_refusal_is_told_humanly_with_its_request_id_and_can_be_retried(visit, gateway, refusal, retry_after, said):
    gateway.default = Script(refuse=refusal, retry_after=retry_after)
    page = visit().open()
    ask(page, "may I?")
    expect(page.locator(".error-card")).to_contain_text(said)
    expect(page.locator(".error-card")).to_contain_text("req_mock_0123456789")
    assert page.url.endswith("#/") and gateway.conversations == {}
    expect(page.locator(".list li")).to_have_count(0)
    gateway.default = Script("You may.")
    page.click(".error-card button")
    expect(answer(page)).to_contain_text("You may.")
    expect(page.locator(".error-card")).to_have_count(0)


def test_a_failed_turn_and_one_cut_at_the_limit_say_so(visit, gateway):
    gateway.scripts["fail"] = Script(
        "half", ending="failed", error={"code": "server_error", "message": "the engine died twice"}
    )
    gateway.scripts["cut"] = Script("cut short", ending="incomplete")
    page = visit().open()
    ask(page, "fail")
    expect(answer(page, "failed")).to_contain_text("the engine died twice")
    ask(page, "cut")
    expect(answer(page, "incomplete")).to_contain_text("Cut at the length limit")


def test_enter_that_picks_a_word_in_an_input_method_does_not_send(visit, gateway):
    page = visit().open()
    page.fill("#ask", "nihao")
    page.evaluate(
        "document.querySelector('#ask').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.press("#ask", "Shift+Enter")
    assert gateway.bodies == []
    page.press("#ask", "Enter")
    expect(answer(page)).to_be_visible()


def test_the_view_follows_the_answer_until_the_reader_scrolls_up(visit, gateway):
    gateway.scripts["lines"] = Script("\n\n".join(f"Line {n} of many." for n in range(120)), hold_after=400)
    page = visit().open()
    ask(page, "lines")
    expect(answer(page, "writing")).to_contain_text("Line 80")
    page.wait_for_function(AT_THE_END)
    page.locator(".scroller").hover()
    page.mouse.wheel(0, -1500)
    expect(page.locator(".jump")).to_be_visible()
    gateway.release()
    expect(answer(page)).to_contain_text("Line 119")
    assert page.evaluate(AT_THE_END) is False
    page.click(".jump")
    page.wait_for_function(AT_THE_END)


# --- settings and tokens ----------------------------------------------------------------------------------------------


def test_the_next_prompt_is_counted_while_typing(visit):
    page = visit().open()
    page.fill("#ask", "How many tokens is this?")
    expect(page.locator(".tokens")).to_have_text(re.compile(r"^\d+ / 8,192$"))


def test_an_opened_conversation_shows_what_its_history_takes(visit, gateway):
    gateway.add_conversation("Long one", "word " * 400, "word " * 400)
    page = visit().open()
    expect(page.locator(".tokens")).to_have_text("– / 8,192")
    page.click(".list a")
    expect(page.locator(".tokens")).to_have_text(re.compile(r"^[1-9]\d\d / 8,192$"))


def test_settings_change_what_is_sent_survive_a_reload_and_reset(visit, gateway):
    page = visit().open()
    page.click("#open-settings")
    page.fill("input[type=number][aria-label=Temperature]", "1.3")
    page.fill("input[type=number][aria-label='Rounds of context']", "2")
    page.keyboard.press("Escape")
    page.reload()
    ask(page, "warm")
    expect(answer(page)).to_be_visible()
    assert gateway.bodies[0]["temperature"] == 1.3
    assert gateway.bodies[0]["context_management"] == [{"type": "deskmate:window", "rounds": 2}]
    page.click("#open-settings")
    page.click("text=Reset to the defaults")
    page.keyboard.press("Escape")
    ask(page, "cool")
    expect(page.locator(".answer[data-status=completed]")).to_have_count(2)
    assert gateway.bodies[1]["temperature"] == 0.2


# --- conversations ----------------------------------------------------------------------------------------------------


def test_conversations_are_listed_searched_opened_renamed_and_deleted(visit, gateway):
    gateway.add_conversation("Old backup plan", "Which disk?", "The **second**.", age_seconds=20 * 86400)
    gateway.add_conversation("Weekly minutes", "Hello?", "Hello.")
    page = visit().open()
    expect(page.locator(".list li")).to_have_count(2)
    page.fill(".search input", "backup")
    expect(page.locator(".list li")).to_have_count(1)
    page.click(".list a")
    expect(page.locator(".answer strong")).to_have_text("second")
    expect(page.locator("h1.title")).to_have_text("Old backup plan")
    page.fill(".search input", "")
    expect(page.locator(".list li")).to_have_count(2)
    row = page.locator(".list li", has_text="Old backup plan")
    row.hover()
    row.get_by_label("Rename").click()
    page.fill(".list li input", "New backup plan")
    page.press(".list li input", "Enter")
    expect(page.locator("h1.title")).to_have_text("New backup plan")
    expect(page.locator(".note")).to_have_count(0)
    row = page.locator(".list li", has_text="New backup plan")
    row.hover()
    row.get_by_label("Delete").click()
    page.click("dialog .danger")
    expect(page.locator(".list li")).to_have_count(1)
    expect(page.locator(".message")).to_have_count(0)
    assert [one["metadata"]["deskmate:title"] for one in gateway.conversations.values()] == ["Weekly minutes"]


def test_more_items_and_conversations_than_one_page_are_all_reached(visit, gateway):
    for number in range(35):
        gateway.add_conversation(f"Talk {number}", age_seconds=number)
    gateway.add_conversation("Long talk", *[f"said {n}" for n in range(230)], age_seconds=0)
    page = visit().open()
    page.click("text=Show older")
    expect(page.locator(".list li")).to_have_count(36)
    page.click(".list a:has-text('Long talk')")
    expect(page.locator(".message")).to_have_count(230)


def test_clear_deletes_the_conversation_and_opens_a_new_one(visit, gateway):
    page = visit().open()
    ask(page, "to be cleared")
    expect(answer(page)).to_be_visible()
    page.click("#clear")
    page.click("dialog .danger")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".list li")).to_have_count(0)
    assert gateway.conversations == {}


# --- no trace ---------------------------------------------------------------------------------------------------------


def test_no_trace_sends_its_history_itself_and_leaves_nothing(visit, gateway):
    gateway.default = Script("Between us.")
    page = visit().open()
    page.click("#no-trace")
    expect(page.locator(".trace-bar")).to_contain_text("Nothing of this conversation is stored")
    ask(page, "a secret 秘密")
    expect(answer(page)).to_contain_text("Between us.")
    ask(page, "and another")
    expect(page.locator(".answer[data-status=completed]")).to_have_count(2)
    for body in gateway.bodies:
        assert body["store"] is False
        assert not {"background", "conversation"} & set(body)
    assert [(one["role"], one["content"]) for one in gateway.bodies[1]["input"]] == [
        ("user", "a secret 秘密"), ("assistant", "Between us."), ("user", "and another"),
    ]  # fmt: skip
    assert gateway.conversations == {}
    kept = page.evaluate(STORED)
    assert kept[:5] == [0, 0, 0, 0, ""]
    assert "secret" not in kept[5] and "secret" not in kept[6]
    page.click("#no-trace")
    page.click("dialog .danger")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".trace-bar")).to_be_hidden()


def test_no_trace_stopped_midway_lets_go_of_the_stream_which_ends_the_answer(visit, gateway):
    gateway.default = Script("Words that nobody keeps at all.", hold_after=3)
    page = visit().open()
    page.click("#no-trace")
    ask(page, "quietly")
    expect(answer(page, "writing")).to_contain_text("Words that")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/responses")):
        page.press("#ask", "Escape")
    expect(answer(page, "cancelled")).to_contain_text("Stopped")
    assert not any("/cancel" in seen or "stream=true" in seen for seen in gateway.requests)


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_sign_in_link_works_once_and_leaves_the_address(visit, gateway):
    page = visit().page
    link = gateway.link()
    page.goto(link)
    expect(page.locator("#ask")).to_be_visible()
    assert "link" not in page.url
    assert page.evaluate("history.length") <= 2
    other = visit().page
    other.goto(link)
    expect(other.locator(".wrong")).to_contain_text("already used")


def test_signing_in_by_name_and_password_changing_it_and_logging_out(visit, gateway):
    gateway.passwords["Ada"] = "correct horse"
    page = visit().page
    page.goto(gateway.address)
    page.fill("#name", "Ada")
    page.fill("#password", "wrong")
    page.click("button[type=submit]")
    expect(page.locator(".wrong")).to_contain_text("do not fit")
    page.fill("#password", "correct horse")
    page.press("#password", "Enter")
    expect(page.locator("#ask")).to_be_visible()
    page.click(".account summary")
    page.click("text=Change password")
    page.fill("#current_password", "correct horse")
    page.fill("#new_password", "battery staple")
    page.click("dialog .primary")
    expect(page.locator(".note")).to_contain_text("changed")
    assert gateway.passwords["Ada"] == "battery staple"
    page.click("text=Log out")
    expect(page.locator("#password")).to_be_visible()
    assert gateway.sessions == {}


def test_a_session_that_ended_leads_to_the_sign_in_page(visit, gateway):
    page = visit().open()
    gateway.sessions.clear()
    ask(page, "am I still here?")
    expect(page.locator("#password")).to_be_visible()


def test_an_administrator_adds_people_makes_links_and_disables(visit, gateway):
    page = visit().open()
    page.click(".account summary")
    page.click("text=Administration")
    page.fill("#new-person", "林")
    page.select_option("#people select", "administrator")
    page.click("text=Add a person")
    row = page.locator("#people tr", has_text="林")
    expect(row).to_contain_text("Administrator")
    row.get_by_text("Sign-in link").click()
    link = page.locator("dialog .secret code").inner_text()
    page.click("dialog .primary")
    row.get_by_role("button", name="Disable").click()
    page.click("dialog .danger")
    expect(row).to_contain_text("Disabled")
    row.get_by_role("button", name="Enable").click()
    expect(row).to_contain_text("Active")
    guest = visit().page
    guest.goto(link)
    expect(guest.locator(".account summary")).to_contain_text("林")


def test_an_administrator_makes_a_key_sees_it_once_and_revokes_it(visit, gateway):
    page = visit().open()
    page.goto(f"{gateway.address}/#/admin")
    page.fill("#key-person", "Ada")
    page.fill("#keys input[maxlength]", "nightly report")
    page.click("text=Create a key")
    key = page.locator("dialog .secret code").inner_text()
    assert key.startswith("dm_live_")
    page.click("dialog .primary")
    expect(page.locator("#keys tbody tr")).to_contain_text("nightly report")
    assert key not in page.content()
    page.click("text=Revoke")
    page.click("dialog .danger")
    expect(page.locator("#keys tbody tr")).to_have_count(0)
    assert gateway.api_keys == {}


def test_the_people_of_a_front_end_are_found_behind_it_and_disabled_one_by_one(visit, gateway):
    gateway.add_user("webui")
    gateway.add_delegates("webui", "ann@example.org", "bob@example.org", "<b>zoë</b>")
    page = visit().open()
    page.goto(f"{gateway.address}/#/admin")
    row = page.locator("#people tr", has_text="webui")
    row.get_by_text("Speaks for 3").click()
    found = page.locator("dialog tbody tr")
    expect(found).to_have_count(2)
    expect(page.get_by_text("There are more")).to_be_visible()
    page.fill("dialog input", "zoë")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("<b>zoë</b>")
    found.get_by_role("button", name="Disable").click()
    page.click("dialog .danger")
    expect(found).to_contain_text("Disabled")
    assert [one["name"] for one in gateway.delegates["webui"] if one["disabled"]] == ["webui/<b>zoë</b>"]
    found.get_by_role("button", name="Enable").click()
    expect(found).to_contain_text("Active")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#people tbody tr")).to_have_count(2)


def test_an_administrator_sees_and_sets_limits_of_people_and_keys(visit, gateway):
    page = visit().open()
    page.goto(f"{gateway.address}/#/admin")
    page.locator("#people tr", has_text="Ada").get_by_role("button", name="Limits").click()
    rows = page.locator("dialog .limit")
    used = ("1,234 used", "1,234 used", "1,234", "1,234 of 512 used", "Weight in the line")
    expect(rows).to_have_text([re.compile(text) for text in used])
    expect(rows.nth(0).locator("input")).to_be_hidden()
    rows.nth(0).locator("select").select_option("at most")
    page.get_by_role("button", name="Save").click()
    expect(rows).to_have_count(5)  # a number is missing
    rows.nth(0).locator("input").fill("50000")
    rows.nth(4).locator("input").fill("11")
    page.get_by_role("button", name="Save").click()
    expect(rows).to_have_count(5)  # more than anybody's
    rows.nth(4).locator("input").fill("2.5")
    rows.nth(2).locator("select").select_option("no limit")
    page.get_by_role("button", name="Save").click()
    expect(rows).to_have_count(0)
    wished = {"tokens_per_day": 50000, "tokens_per_month": "default", "requests_per_minute": "none"}
    assert gateway.limits[gateway.users["Ada"]["id"]] == wished | {"concurrency": "default"}
    assert gateway.weights[gateway.users["Ada"]["id"]] == 2.5
    page.fill("#key-person", "Ada")
    page.click("text=Create a key")
    page.click("dialog .primary")
    page.locator("#keys tbody tr").get_by_role("button", name="Limits").click()
    expect(rows.locator("select")).to_have_count(3)
    rows.nth(1).locator("select").select_option("at most")
    rows.nth(1).locator("input").fill("7")
    page.get_by_role("button", name="Save").click()
    expect(rows).to_have_count(0)
    (id,) = gateway.api_keys
    assert gateway.limits[id]["tokens_per_month"] == 7 and "concurrency" not in gateway.limits[id]


def test_a_member_finds_no_administration(visit, gateway):
    gateway.add_user("Lin")
    page = visit().open("Lin")
    page.goto(f"{gateway.address}/#/admin")
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator(".admin")).to_have_count(0)
    assert not any(" /admin" in seen for seen in gateway.requests)


# --- languages and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("locale", "placeholder", "other"),
    [("en-GB", "Ask anything…", "输入您的问题…"), ("zh-CN", "输入您的问题…", "Ask anything…")],
)
def test_the_page_speaks_the_browsers_language_and_switches(visit, locale, placeholder, other):
    page = visit(locale=locale).open()
    expect(page.locator("#ask")).to_have_attribute("placeholder", placeholder)
    page.click(".account summary")
    page.click(".language")
    expect(page.locator("#ask")).to_have_attribute("placeholder", other)
    page.reload()
    expect(page.locator("#ask")).to_have_attribute("placeholder", other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_list_slides_in(visit, gateway, scheme):
    gateway.scripts["wide"] = Script(
        "```\n" + "x" * 300 + "\n```\n\n|" + "wide|" * 30 + "\n|" + "-|" * 30 + "\n\n" + "y" * 300
    )
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme).open()
    ask(page, "wide")
    expect(answer(page)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("document.querySelector('.scroller').scrollWidth") <= PHONE["width"]
    expect(page.locator(".side")).not_to_be_in_viewport()
    page.tap("#menu")
    expect(page.locator(".side")).to_be_in_viewport()
    page.tap(".list a")
    page.tap(".side .brand button")
    expect(page.locator(".side")).not_to_be_in_viewport()


def test_the_demo_model_says_so_and_how_to_serve_a_real_one(visit, gateway):
    page = visit().open()
    expect(page.locator(".demo")).to_contain_text("./deskmate up --model DIR")
    page.locator(".demo").get_by_label("Hide this note").click()
    expect(page.locator(".demo")).to_be_hidden()
    gateway.demo = False
    page.reload()
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator(".demo")).to_be_hidden()


# --- what model text may never do -------------------------------------------------------------------------------------


def assert_harmless(page: Page) -> None:
    assert [tag for tag in page.evaluate(TAGS_IN_ANSWERS) if not ALLOWED.fullmatch(tag)] == []
    for attribute in page.evaluate(ATTRIBUTES):
        assert not re.match(r"(on\w+|style|src|srcset|id|name|ping|action|formaction)=", attribute), attribute
        assert not re.match(r"(xlink:)?href=(?!https?:|mailto:)", attribute), attribute


def test_no_text_of_the_corpus_runs_a_script_or_asks_anybody_for_anything(visit, gateway):
    assert len(CORPUS) >= 60
    gateway.add_conversation("corpus", *[text for payload in CORPUS for text in (payload, payload)])
    for number, payload in enumerate(CORPUS):
        gateway.add_conversation(f"{number} {payload}", age_seconds=number + 1)
    gateway.add_user(CORPUS[0])
    page = visit().open()
    page.click(".list a:has-text('corpus')")
    expect(page.locator(".answer")).to_have_count(len(CORPUS))
    for shown in range(60, len(CORPUS) + 31, 30):
        page.click("text=Show older")
        expect(page.locator(".list li")).to_have_count(min(shown, len(CORPUS) + 1))
    assert_harmless(page)
    expect(page.locator(".question .bubble").first).to_have_text(CORPUS[0])
    page.goto(f"{gateway.address}/#/admin")
    expect(page.locator("#people tbody tr")).to_have_count(2)
    page.wait_for_load_state("networkidle")
    routes = ("GET / ", "GET /web/", "GET /v1/", "GET /readyz", "GET /admin/", "GET /auth/me")
    routes += ("POST /auth/link ", "POST /v1/responses/input_tokens ")
    assert [seen for seen in gateway.requests if not (seen + " ").startswith(routes)] == []


def test_the_corpus_does_no_harm_while_it_streams_in_either(visit, gateway):
    gateway.default = Script("\n\n".join(CORPUS))
    page = visit().open()
    ask(page, "everything at once")
    expect(answer(page)).to_be_visible(timeout=30_000)
    assert_harmless(page)


def test_a_link_of_the_model_shows_its_host_and_asks_before_it_is_followed(visit, gateway):
    gateway.default = Script("See [the bank](https://evil.test/login).")
    page = visit().open()
    ask(page, "link")
    expect(answer(page).locator("a")).to_have_text("the bank (evil.test)")
    assert answer(page).locator("a").get_attribute("rel") == "noopener noreferrer nofollow"
    answer(page).locator("a").click()
    expect(page.locator("dialog")).to_contain_text("https://evil.test/login")
    page.locator("dialog").get_by_text("Cancel").click()
    expect(page.locator("dialog")).to_have_count(0)


def test_hostile_error_texts_and_names_stay_text(visit, gateway):
    hostile = "<img src=x onerror=alert(1)>"
    gateway.add_user(hostile)
    gateway.default = Script("", ending="failed", error={"code": hostile, "message": hostile})
    page = visit().open(hostile)
    ask(page, "fail")
    expect(answer(page, "failed")).to_contain_text(hostile)
    expect(page.locator(".welcome h2")).to_contain_text(hostile)
    assert page.locator("img").count() == 0
