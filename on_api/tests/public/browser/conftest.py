"""A real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from on_api.tests.conftest import DatabaseMaker, Server
from on_api.tests.testing.programs import needs, program

needs_chromium = [pytest.mark.browser, needs("chromium")]
"""Marks of every module here."""

SHOWN_WITHIN_MS = 60_000
"""How long a page may take to show what a test looks for: a bound on a test that fails, not on the
page, which renders a large document beside other suites on two cores."""


@pytest.fixture(scope="session")
def new_database(sqlite_database: DatabaseMaker) -> DatabaseMaker:
    """One kind is enough: what is tested here is what a page does."""
    return sqlite_database


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    expect.set_options(timeout=SHOWN_WITHIN_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program("chromium"),
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                # Every name but ours leads nowhere.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page whose browser reaches our server and nothing else; the test fails if it tried."""
    with browsing(browser, server.url) as opened:
        yield opened


@contextmanager
def browsing(browser: Browser, *origins: str) -> Iterator[Page]:
    """A page that remembers nothing of others and reaches these origins and nothing else; fails
    if it tried."""
    strangers: list[str] = []

    def watch(request: Request) -> None:
        if not request.url.startswith((*origins, "data:", "blob:")):
            strangers.append(request.url)

    with browser.new_context() as context:
        opened = context.new_page()
        opened.on("request", watch)
        opened.set_default_timeout(SHOWN_WITHIN_MS)
        yield opened
    assert not strangers
