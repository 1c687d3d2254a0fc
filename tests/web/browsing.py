"""A person at the chat page: a browser window of their own, and what they do in it. Knows the page, not the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from playwright.sync_api import Browser, Locator, Page, Request, expect

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

WATCH = """
  for (const name of ['alert', 'confirm', 'prompt']) window[name] = (text) => forbidden(`${name} ${text}`);
  addEventListener('securitypolicyviolation', (e) => forbidden(`${e.violatedDirective} ${e.blockedURI}`));
"""
STORED = """async () => [
  localStorage.length, sessionStorage.length, (await indexedDB.databases()).length, (await caches.keys()).length,
  document.cookie, JSON.stringify(history.state), location.href,
]"""


class Gateway(Protocol):
    @property
    def address(self) -> str: ...
    def link(self, name: str) -> str: ...


class Visit:
    """One person's browser window, which remembers everything that must not happen in it, whatever page it shows."""

    def __init__(self, browser: Browser, gateway: Gateway, **options: Any) -> None:
        self.gateway = gateway
        self.context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-US"} | options)
        self.faults: list[str] = []  # broken content policy, script that ran, requests elsewhere, errors of the page
        self.context.expose_function("forbidden", lambda what: self.faults.append(what))
        self.context.add_init_script(WATCH)
        self.context.on("request", self._seen)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _seen(self, request: Request) -> None:
        if not request.url.startswith(self.gateway.address + "/"):
            self.faults.append(f"a request to {request.url}")

    def open(self, name: str = "Ada") -> Page:
        self.page.goto(self.gateway.link(name))
        expect(self.page.locator("#ask")).to_be_visible()
        return self.page

    def close(self) -> None:
        self.page.evaluate("1")  # what the page has reported so far has arrived
        self.context.close()
        assert self.faults == []


def ask(page: Page, question: str) -> None:
    page.fill("#ask", question)
    page.press("#ask", "Enter")


def answer(page: Page, status: str = "completed") -> Locator:
    return page.locator(f".answer[data-status={status}]").last


def until(true: Callable[[], Any], within_seconds: float = 20.0) -> Any:
    """Look again until it holds: for what no event of the page tells."""
    deadline = time.monotonic() + within_seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value
