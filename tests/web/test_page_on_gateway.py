"""The chat page in Chromium on the real gateway and a real Redis: only the engine behind them is scripted."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from playwright.sync_api import Page, expect

from tests.fake_worker import FakeWorker, Record
from tests.gateway_process import GatewayProcess
from tests.servers import some_redis
from tests.web.browsing import DESKTOP, PHONE, STORED, Visit, answer, ask, until

pytestmark = pytest.mark.browser

SEATS = 4
LONG = " ".join(f"word{number}" for number in range(400))
ENGLISH = {"search": "Search conversations", "rename": "Rename", "hint": "tokens in"}
CHINESE = {"search": "搜索对话", "rename": "重命名", "hint": "输入"}

RUNNING = """async () => {
  const id = location.hash.slice("#/c/".length);
  return (await (await fetch(`/v1/conversations/${id}`)).json())["deskmate:running"];
}"""

_people = itertools.count(1)


@dataclass
class Desk:
    """The gateway as the page's visitors meet it."""

    process: GatewayProcess
    worker: FakeWorker

    @property
    def address(self) -> str:
        return self.process.url

    def link(self, name: str) -> str:
        """A sign-in link of `name`, who is new."""
        self.process.command("user", "create", name)
        return self.process.command("user", "link", name).strip()

    def kept(self) -> set[bytes]:
        """Names in Redis, but for the counts of tokens and requests."""
        counts = (b"dm:line:", b"dm:used:")
        return {name for name in self.process.redis.admin("KEYS", "*") if not name.startswith(counts)}

    def administrators_link(self) -> str:
        return json.loads(self.process.command("user", "link", "--administrator", "--json"))["url"]

    def client(self, name: str) -> openai.OpenAI:
        key = json.loads(self.process.command("key", "create", "--user", name, "--json"))["key"]
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=30)

    def until_ready(self) -> None:
        until(lambda: self.process.readyz() == 200)


@pytest.fixture(scope="module")
def shared_desk() -> Iterator[Desk]:
    port = free_port()  # known beforehand: the links it makes name it
    with (
        some_redis() as redis,
        FakeWorker(seats=SEATS) as worker,
        GatewayProcess(redis, worker.url, port=port) as process,
    ):
        yield Desk(process, worker)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def gateway(shared_desk: Desk) -> Desk:
    shared_desk.worker.script(pace_ms=0, prefill_ms=0, answer=None, batch=1)
    shared_desk.worker.engine.records.clear()
    shared_desk.until_ready()
    return shared_desk


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Desk]:
    """A desk of its own whose model is loading, as a supervisor reports it."""
    stages = [
        {"name": "plan", "state": "done", "started_at": time.time() - 6, "seconds": 1.2, "message": ""},
        {"name": "weights", "state": "running", "started_at": time.time() - 5, "seconds": None, "message": ""},
    ]
    (tmp_path / "status").write_text(json.dumps({"ready": False, "stages": stages}))
    with some_redis() as redis, FakeWorker(seats=SEATS, loading=True) as worker:
        (tmp_path / "plan").write_text(json.dumps(worker.engine.plan))
        files = {"DESKMATE_STATUS_FILE": str(tmp_path / "status"), "DESKMATE_PLAN_FILE": str(tmp_path / "plan")}
        with GatewayProcess(redis, worker.url, files) as process:
            yield Desk(process, worker)


@pytest.fixture
def worker(gateway: Desk) -> FakeWorker:
    return gateway.worker


@pytest.fixture
def name() -> str:
    return f"Visitor {next(_people)}"


def items(page: Page) -> list[tuple[str, str]]:
    """Who said what in the open conversation, as the server keeps it."""
    id = page.url.partition("#/c/")[2]
    stored = page.evaluate("async (id) => (await fetch(`/v1/conversations/${id}/items?order=asc`)).json()", id)
    return [(item["role"], item["content"][0]["text"]) for item in stored["data"]]


def generation(worker: FakeWorker) -> Record:
    """The newest request for an answer that came with a stream: not one that only counts."""
    return until(lambda: worker.generations)[-1]


def elsewhere(visit: Callable[..., Visit], first: Visit, **options: Any) -> Page:
    """The page of the same person in another browser."""
    other = visit(first.gateway, storage_state=first.context.storage_state(), **options).page
    other.goto(first.gateway.address)
    expect(other.locator("#ask")).to_be_visible()
    return other


def look(page: Page) -> None:
    """Come back to the page's window."""
    page.evaluate("dispatchEvent(new Event('focus'))")


def show_side(page: Page) -> None:
    if page.locator("#menu").is_visible():
        page.click("#menu")
        expect(page.locator(".side")).to_be_in_viewport()


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"viewport": DESKTOP, "locale": "en-US"}, ENGLISH),
        ({"viewport": PHONE, "locale": "zh-CN", "has_touch": True, "is_mobile": True}, CHINESE),
    ],
    ids=["desktop in English", "phone in Chinese"],
)
def test_two_rounds_then_the_list_a_new_name_search_and_clear(visit, gateway, worker, name, options, words):
    page = visit(**options).open(name)
    worker.script(answer="A list:\n\n- **one**\n- 两个 🙂", pace_ms=300)
    ask(page, "What is on the list? 清单上有什么?")
    expect(answer(page, "writing")).to_contain_text("A list")
    worker.script(pace_ms=0)
    expect(answer(page).locator("li strong")).to_have_text("one")
    expect(answer(page)).to_contain_text(words["hint"])
    page.fill("#ask", "And then?")
    expect(page.locator(".tokens")).to_have_text(re.compile(r"^\d+ / 8,192$"))
    worker.script(answer=None, pace_ms=0)
    page.press("#ask", "Enter")
    expect(page.locator(".answer[data-status=completed]")).to_have_count(2)
    assert [message["content"] for message in generation(worker).body["messages"] if message["role"] != "system"] == [
        "What is on the list? 清单上有什么?", "A list:\n\n- **one**\n- 两个 🙂", "And then?",
    ]  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]

    show_side(page)
    expect(page.locator(".list [aria-current]")).to_contain_text("What is on the list?")
    row = page.locator(".list li")
    row.hover()
    row.get_by_label(words["rename"]).click()
    page.fill(".list li input", "购物 list")
    page.press(".list li input", "Enter")
    expect(page.locator("h1.title")).to_have_text("购物 list")
    page.get_by_label(words["search"]).fill("nothing like it")
    expect(row).to_have_count(0)
    page.get_by_label(words["search"]).fill("购物")
    expect(row).to_have_text("购物 list")
    page.get_by_label(words["search"]).fill("")
    page.reload()
    expect(page.locator("h1.title")).to_have_text("购物 list")
    expect(page.locator(".answer")).to_have_count(2)
    page.click("#clear")
    page.click("dialog .danger")
    expect(page.locator(".message")).to_have_count(0)
    expect(row).to_have_count(0)


def test_the_count_follows_the_typing_and_is_what_the_engine_then_reads(visit, worker, name):
    page = visit().open(name)
    ask(page, "first round")
    expect(answer(page)).to_be_visible()
    tokens = page.locator(".tokens")
    for question in ("short", "quite a bit longer than that 很长"):
        before = tokens.inner_text()
        page.fill("#ask", question)
        expect(tokens).not_to_have_text(before)
    shown = int(tokens.inner_text().partition(" / ")[0])
    page.press("#ask", "Enter")
    expect(page.locator(".answer[data-status=completed]")).to_have_count(2)
    assert shown == len(generation(worker).prompt_ids)
    expect(answer(page)).to_contain_text(f"{shown} tokens in")


def test_stop_ends_the_answer_in_the_engine_and_keeps_what_was_said(visit, worker, name):
    worker.script(answer=LONG, pace_ms=10)
    page = visit().open(name)
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("word3")
    page.click(".stop")
    expect(answer(page, "cancelled")).to_contain_text("Stopped")
    until(lambda: generation(worker).state == "aborted")
    said = answer(page, "cancelled").locator(".markdown").inner_text()
    assert LONG.startswith(said)
    assert items(page) == [("user", "a long one"), ("assistant", said)]
    page.reload()
    expect(page.locator(".answer .markdown")).to_have_text(said)


def test_a_reload_in_the_middle_goes_on_to_the_end_which_is_what_is_kept(visit, worker, name):
    worker.script(answer=LONG, pace_ms=10)
    page = visit().open(name)
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("word9")
    page.reload()
    expect(answer(page, "writing")).to_contain_text("word9")
    worker.script(pace_ms=0)
    expect(answer(page).locator(".markdown")).to_have_text(LONG)
    assert items(page) == [("user", "a long one"), ("assistant", LONG)]
    assert len(worker.generations) == 1


# --- versions, and two devices ----------------------------------------------------------------------------------------


def test_versions_are_kept_through_a_reload_and_shown_on_another_device(visit, gateway, worker, name):
    def shelves() -> set[bytes]:
        return set(gateway.process.redis.admin("KEYS", "dm:shelf:*"))

    before = shelves()
    first = visit()
    page = first.open(name)
    for question in ("Which disk?", "Why that one?"):
        ask(page, question)
        expect(page.locator(".question .bubble").last).to_have_text(question)
        expect(page.locator(".stop")).to_be_hidden()
    trunk = items(page)
    page.locator(".question").last.hover()
    page.locator(".question .branching").last.click()
    worker.script(answer="In another version.")
    page.fill(".editor textarea", "How so?")
    page.press(".editor textarea", "Enter")
    expect(answer(page)).to_contain_text("In another version.")
    assert items(page) == [*trunk[:2], ("user", "How so?"), ("assistant", "In another version.")]
    asked = [message["content"] for message in generation(worker).body["messages"] if message["role"] == "user"]
    assert asked == ["Which disk?", "How so?"]
    page.reload()
    expect(page.locator(".arrows:visible .place")).to_have_text("2 / 2")
    expect(page.locator(".list li")).to_have_text(["Which disk?"])

    phone = elsewhere(visit, first, viewport=PHONE, locale="zh-CN", has_touch=True, is_mobile=True)
    show_side(phone)
    phone.tap(".list a")
    expect(phone.locator(".arrows:visible .place")).to_have_text("2 / 2")
    phone.get_by_label("上一版本").tap()
    expect(phone.locator(".question .bubble").last).to_have_text("Why that one?")
    assert items(phone) == trunk
    phone.locator(".answer").first.get_by_label("重新回答").tap()
    expect(phone.locator(".answer .markdown")).to_have_text("In another version.")
    expect(phone.locator(".arrows:visible .place")).to_have_text("2 / 2")
    look(page)
    expect(page.locator(".arrows:visible .place")).to_have_text(["1 / 2", "2 / 2"])
    page.locator(".list li").hover()
    page.locator(".list li").get_by_label("Delete").click()
    page.click("dialog .danger")
    expect(page.locator(".list .empty")).to_be_visible()
    assert shelves() == before


def test_two_devices_stay_in_step_without_a_reload(visit, worker, name):
    first = visit()
    page = first.open(name)
    ask(page, "from the desk")
    expect(answer(page)).to_be_visible()
    other = elsewhere(visit, first)
    other.click(".list a")
    expect(answer(other)).to_be_visible()
    worker.script(answer=LONG, pace_ms=10)
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("word3")
    expect(answer(other, "writing")).to_contain_text("word3", timeout=15_000)
    ask(other, "and me?")
    expect(other.locator("#ask")).to_have_value("and me?")
    other.click(".stop")
    expect(answer(page, "cancelled")).to_contain_text("Stopped")
    worker.script(answer="Yes, you too.", pace_ms=0)
    other.press("#ask", "Enter")
    expect(answer(other)).to_contain_text("Yes, you too.")
    look(page)
    expect(answer(page)).to_contain_text("Yes, you too.")
    assert page.locator(".question .bubble").all_inner_texts() == ["from the desk", "a long one", "and me?"]
    assert items(page) == items(other)


def test_a_question_to_a_conversation_that_another_device_asked_is_sent_after_that_answer(visit, worker, name):
    first = visit()
    page = first.open(name)
    ask(page, "one")
    expect(answer(page)).to_be_visible()
    other = elsewhere(visit, first)
    other.click(".list a")
    expect(answer(other)).to_be_visible()
    worker.script(answer=LONG, pace_ms=10)
    other.route("**/v1/conversations/*", lambda route: route.abort())  # it hears nothing of the other question
    ask(page, "two")
    expect(answer(page, "writing")).to_contain_text("word3")
    other.unroute("**/v1/conversations/*")
    ask(other, "three")
    other.click("text=Send it after this answer")
    worker.script(pace_ms=0)
    expect(other.locator(".answer[data-status=completed]")).to_have_count(3)
    assert [text for role, text in items(other) if role == "user"] == ["one", "two", "three"]


# --- settings, and nothing kept ---------------------------------------------------------------------------------------


def test_the_drawer_reaches_the_engine_and_goes_back_to_the_defaults(visit, worker, name):
    page = visit().open(name)
    for number in range(3):
        ask(page, f"round {number}")
        expect(page.locator(".answer[data-status=completed]")).to_have_count(number + 1)
    asked = ("temperature", "top_p", "max_tokens")
    assert [generation(worker).body[field] for field in asked] == [0.7, 0.9, 1024]
    page.click("#open-settings")
    chosen = {"Temperature": "1.3", "Top p": "0.5", "Longest answer": "32", "Rounds of context": "1"}
    for label, value in chosen.items():
        page.fill(f"input[type=number][aria-label='{label}']", value)
    page.keyboard.press("Escape")
    ask(page, "round 3")
    expect(page.locator(".answer")).to_have_count(4)
    expect(page.locator(".stop")).to_be_hidden()
    assert [generation(worker).body[field] for field in asked] == [1.3, 0.5, 32]
    questions = [message["content"] for message in generation(worker).body["messages"] if message["role"] == "user"]
    assert questions == ["round 2", "round 3"]
    page.click("#open-settings")
    page.click("text=Reset to the defaults")
    page.keyboard.press("Escape")
    ask(page, "round 4")
    expect(page.locator(".answer")).to_have_count(5)
    expect(page.locator(".stop")).to_be_hidden()
    assert [generation(worker).body[field] for field in asked] == [0.7, 0.9, 1024]
    questions = [message["content"] for message in generation(worker).body["messages"] if message["role"] == "user"]
    assert questions == [f"round {number}" for number in range(5)]


def test_no_trace_leaves_nothing_on_the_server_or_in_the_browser(visit, gateway, worker, name):
    page = visit().open(name)
    expect(page.locator(".tokens")).to_have_text("– / 8,192")
    before = gateway.kept()
    page.click("#no-trace")
    ask(page, "a secret 秘密")
    expect(answer(page)).to_be_visible()
    ask(page, "and another")
    expect(page.locator(".answer[data-status=completed]")).to_have_count(2)
    assert [message["role"] for message in generation(worker).body["messages"][-3:]] == ["user", "assistant", "user"]
    assert gateway.kept() - before == set()
    page.reload()
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator(".list .empty")).to_be_visible()
    expect(page.locator(".message")).to_have_count(0)
    kept = page.evaluate(STORED)
    assert kept[:5] == [0, 0, 0, 0, ""]
    assert "secret" not in f"{kept[5:]}"


def test_a_refused_first_question_leaves_no_empty_conversation(visit, worker, name):
    page = visit().open(name)
    ask(page, "word " * 20_000)
    expect(page.locator(".error-card")).to_contain_text("longer than the model's context")
    expect(page.locator(".list .empty")).to_be_visible()
    assert worker.generations == []
    ask(page, "something shorter")
    expect(answer(page)).to_be_visible()
    expect(page.locator(".list li")).to_have_text(["something shorter"])


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_the_place_in_line_counts_down_to_the_answer(visit, gateway, worker, name):
    worker.script(answer=LONG, pace_ms=20)
    page = visit().open(name)
    others = [gateway.client(f"Other {number} of {name}") for number in range(SEATS)]
    seated = [(other, other.responses.create(input="take a seat", background=True)) for other in others]
    until(lambda: worker.engine.running == SEATS)
    first = gateway.client(f"First of {name}").responses.create(input="me first", background=True)
    ask(page, "and me?")
    expect(answer(page, "queued")).to_contain_text("2nd in line")
    leave(seated)
    expect(answer(page, "queued")).to_contain_text("Next in line, about")
    worker.script(answer="Your turn.", pace_ms=0)
    leave(seated)
    expect(answer(page)).to_contain_text("Your turn.")
    gateway.client(f"First of {name}").responses.cancel(first.id)
    while seated:
        leave(seated)


def leave(seated: list[tuple[openai.OpenAI, Response]]) -> None:
    other, response = seated.pop()
    other.responses.cancel(response.id)


def test_a_question_asked_while_the_model_loads_waits_in_line_and_is_answered(visit, starting):
    page = visit(starting).open("Early bird")
    expect(page.locator(".stages li[data-state=running]")).to_contain_text("Load the weights")
    expect(page.locator(".tokens")).to_have_text("– / 8,192")
    ask(page, "Anybody there?")
    expect(answer(page, "queued")).to_contain_text("Next in line. The model is loading")
    page.reload()
    expect(answer(page, "queued")).to_contain_text("Next in line. The model is loading")
    assert starting.worker.generations == []
    starting.worker.script(loading=False, answer="Here I am.")
    expect(answer(page)).to_contain_text("Here I am.")
    expect(page.locator(".start")).to_be_hidden()
    assert len(starting.worker.generations) == 1


def test_an_answer_begun_on_one_phone_ends_on_another_though_the_gateway_is_killed_in_between(visit, starting):
    starting.worker.script(loading=False, answer=LONG, pace_ms=40)
    starting.until_ready()
    first = visit(starting, viewport=PHONE, has_touch=True, is_mobile=True)
    page = first.open("Ada")
    ask(page, "a long one")
    expect(answer(page, "writing")).to_contain_text("word9")
    response = page.evaluate(RUNNING)
    first.context.set_offline(True)
    other = elsewhere(visit, first, viewport=PHONE, has_touch=True, is_mobile=True, locale="zh-CN")
    show_side(other)
    other.tap(".list a")
    expect(answer(other, "writing")).to_contain_text("word19 ")
    starting.process.stop(signal.SIGKILL)
    expect(answer(other, "writing")).to_contain_text("连接中断")
    said = other.locator(".answer .markdown").inner_text()
    assert LONG.startswith(said) and said != LONG
    starting.process.start()
    expect(other.locator(".answer .markdown")).to_contain_text(following(said), timeout=20_000)
    starting.worker.script(pace_ms=0)
    expect(answer(other).locator(".markdown")).to_have_text(LONG)
    assert items(other) == [("user", "a long one"), ("assistant", LONG)]
    stored = other.evaluate("async (id) => (await fetch(`/v1/responses/${id}`)).json()", response)
    assert (stored["status"], stored["output"][0]["content"][0]["text"]) == ("completed", LONG)
    first.context.set_offline(False)
    expect(answer(page).locator(".markdown")).to_have_text(LONG)


def following(said: str) -> str:
    """A word of the long answer that comes a little later than what was said."""
    return f"word{len(said.split()) + 10} "


# --- people -----------------------------------------------------------------------------------------------------------


def test_the_administrators_link_works_once_and_leads_to_people_keys_and_links(visit, gateway, name):
    link = gateway.administrators_link()
    page = visit().page
    page.goto(link)
    expect(page.locator("#ask")).to_be_visible()
    assert "link" not in page.url
    late = visit().page
    late.goto(link)
    expect(late.locator(".wrong")).to_contain_text("already used")

    page.click(".account summary")
    page.click("text=Administration")
    page.fill("#new-person", name)
    page.click("text=Add a person")
    row = page.locator("#people tr", has_text=name)
    expect(row).to_contain_text("Member")
    page.fill("#key-person", name)
    page.fill("#keys input[maxlength]", "a program")
    page.click("text=Create a key")
    key = page.locator("dialog .secret code").inner_text()
    page.click("dialog .primary")
    expect(row).to_contain_text("1 key")
    client = openai.OpenAI(base_url=f"{gateway.address}/v1", api_key=key, max_retries=0, timeout=30)
    conversation = client.conversations.create()
    assert client.responses.create(input="by a program", conversation=conversation.id).status == "completed"
    row.get_by_text("Sign-in link").click()
    theirs = page.locator("dialog .secret code").inner_text()
    page.click("dialog .primary")

    guest = visit().page
    guest.goto(theirs)
    expect(guest.locator(".account summary")).to_have_text(name)
    expect(guest.locator(".list li")).to_have_text(["by a program"])
    guest.click(".account summary")
    expect(guest.get_by_text("Administration")).to_have_count(0)

    key_row = page.locator("#keys tbody tr", has_text=name)
    key_row.get_by_text("Revoke").click()
    page.click("dialog .danger")
    expect(key_row).to_have_count(0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    row.get_by_role("button", name="Disable").click()
    page.click("dialog .danger")
    expect(row).to_contain_text("Disabled")
    ask(guest, "am I still here?")
    expect(guest.locator("#password")).to_be_visible()
