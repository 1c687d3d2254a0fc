"""Chromium, and people who visit the page of whatever `gateway` the tests of a file bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.web.browsing import Gateway, Visit

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, gateway: Gateway) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def begin(where: Gateway = gateway, **options: Any) -> Visit:
        visits.append(Visit(browser, where, **options))
        return visits[-1]

    yield begin
    for one in visits:
        one.close()
