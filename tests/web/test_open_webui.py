"""Open WebUI as it is, before a gateway and a scripted worker: only with `--open-webui`, for it is gigabytes large.

    ./deskmate test --open-webui          installs it into var/open-webui, where it stays for the next time
    ./deskmate test --open-webui DIR      the same elsewhere; PIP_CONSTRAINT=FILE with `torch==…` chooses a small torch

It goes into an environment of its own, without a network, and is set up as docs/administrator.md says.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.fake_worker import FakeWorker
from tests.gateway_process import GatewayProcess
from tests.servers import some_redis
from tests.web.browsing import until

pytestmark = pytest.mark.browser

VERSION = "0.12.4"
PAGE = Path(__file__).parents[2] / "docs" / "administrator.md"
HEADER = "X-OpenWebUI-User-Id"
START_SECONDS = 600.0  # a minute when nothing else runs: it upgrades an empty database step by step
PATIENCE_MS = 120_000
PASSWORD = "three unrelated words"
LONG = " word" * 1000

OFFLINE = {
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
    "RAG_EMBEDDING_ENGINE": "openai",  # else it would load a model of its own for documents
}
SET_UP = {  # what the handbook says, by name
    "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
    "ENABLE_OLLAMA_API": "false",
    "BYPASS_MODEL_ACCESS_CONTROL": "true",
    "ENABLE_TITLE_GENERATION": "false",
    "ENABLE_TAGS_GENERATION": "false",
    "ENABLE_FOLLOW_UP_GENERATION": "false",
}


def installed(folder: Path) -> Path:
    """The program, in an environment of its own; a constraint on torch may come as pip's own setting."""
    if not list(folder.glob(f"lib/python*/site-packages/open_webui-{VERSION}.dist-info")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", f"open-webui=={VERSION}"], check=True)
    return folder / "bin" / "open-webui"


@dataclass(frozen=True)
class OpenWebUI:
    address: str
    log: Path

    def post(self, path: str, body: Mapping[str, str], token: str = "") -> Any:
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def people(self, *names: str) -> dict[str, Any]:
        """Id and token of each; the first who signs up is its administrator, who makes the others."""
        root = {"name": "Root", "email": "root@example.org", "password": PASSWORD}
        token = self.post("/api/v1/auths/signup", root)["token"]
        made = {}
        for name in names:
            body = {"name": name, "email": f"{name.lower()}@example.org", "password": PASSWORD, "role": "user"}
            made[name] = self.post("/api/v1/auths/add", body, token)
        return made


@contextmanager
def open_webui(program: Path, folder: Path, settings: Mapping[str, str]) -> Iterator[OpenWebUI]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), "WEBUI_SECRET_KEY": "key"}
    one = OpenWebUI(f"http://127.0.0.1:{port}", folder / "log")
    with one.log.open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment | OFFLINE | settings, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: one.is_up() or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, one.log.read_text()[-4000:]
        yield one
    finally:
        process.kill()
        process.wait()


def open_as(browser: Browser, one: OpenWebUI, token: str) -> Page:
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
    context.add_init_script(f"localStorage.token = {json.dumps(token)}")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(one.address)
    return page


def ask(page: Page, question: str) -> None:
    page.click("#chat-input")
    page.keyboard.type(question)
    page.click("#send-message-button")


def last_answer(page: Page) -> Locator:
    return page.locator(".chat-assistant").last


def test_open_webui_chats_stops_and_regenerates_and_its_people_are_people_here(
    browser: Browser, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if (folder := pytestconfig.getoption("--open-webui")) is None:
        pytest.skip("only with --open-webui")
    program = installed(Path(folder).absolute())
    with (
        some_redis() as redis,
        FakeWorker(seats=4) as worker,
        GatewayProcess(redis, worker.url, {"DESKMATE_DELEGATE_HEADER": HEADER}) as gateway,
    ):
        until(lambda: gateway.readyz() == 200)
        made = gateway.command("key", "create", "--user", "front-end", "--scope", "delegate", "--json")
        connection = {"OPENAI_API_BASE_URL": f"{gateway.url}/v1", "OPENAI_API_KEY": json.loads(made)["key"]}
        with open_webui(program, tmp_path, SET_UP | connection) as one:
            people = one.people("Ann", "Bob")
            expect.set_options(timeout=PATIENCE_MS)
            try:
                chats_stops_and_regenerates(open_as(browser, one, people["Ann"]["token"]), worker)
                worker.script(pace_ms=0, answer="hello Bob")
                page = open_as(browser, one, people["Bob"]["token"])
                ask(page, "who am I?")
                expect(last_answer(page)).to_contain_text("hello Bob")
            finally:
                expect.set_options(timeout=5_000)
        salts = [record.body["cache_salt"] for record in worker.generations]
        assert len(salts) == 4 and len(set(salts[:3])) == 1 and salts[3] != salts[0], "no request but what people asked"
        listed = json.loads(gateway.command("user", "list", "--of", "front-end", "--json"))
        assert {person["name"] for person in listed} >= {f"front-end/{people[name]['id']}" for name in people}


def chats_stops_and_regenerates(page: Page, worker: FakeWorker) -> None:
    worker.script(pace_ms=0, answer="a first answer")
    ask(page, "hello")
    expect(last_answer(page)).to_contain_text("a first answer")
    worker.script(pace_ms=300, answer=LONG)  # so long that even a slow browser finds the button while it is written
    ask(page, "tell me much")
    expect(last_answer(page)).to_contain_text("word word")
    assert [record.state for record in worker.generations] == ["finished", "running"], "it is shown while it is written"
    page.get_by_label("Stop", exact=True).last.click()
    until(lambda: worker.generations[1].state == "aborted", 20.0)
    worker.script(pace_ms=0, answer="another answer")
    page.get_by_label("Regenerate", exact=True).last.click()
    page.get_by_text("Try Again", exact=True).click()
    expect(last_answer(page)).to_contain_text("another answer")
    assert len(worker.generations) == 3
    asked = [[message["content"] for message in record.body["messages"]] for record in worker.generations]
    assert asked[2] == asked[1] == [*asked[0], "a first answer", "tell me much"]


def test_open_webui_is_set_up_in_its_test_as_the_handbook_says() -> None:
    text = PAGE.read_text().partition("**Open WebUI** (")[2].partition("**LibreChat**:")[0]
    assert VERSION in text and HEADER in text
    rows = [line.split("|")[:4] for line in text.splitlines() if line.startswith("| `")]
    told = {
        name: value.split("`")[1]
        for _, names, value, _ in rows
        for name in re.findall(r"`(\w+)`", names)
        if "`" in value
    }
    assert SET_UP.items() <= told.items()
