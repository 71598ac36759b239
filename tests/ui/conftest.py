"""Fixtures: Chromium, a server with a fake engine, and a tab that must only send requests to that server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from playwright.sync_api import Page as Tab

from config import Settings
from ocr_server.app import create_app
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import FakeEngine, settings
from tests.reliability.served import served, wait_until
from tests.ui.browser import ANSWER, TIMEOUT_MS, each_page

__all__ = ["settings"]

KEY = "sk-open-sesame"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WINDOW = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")  # its event loop occupies this thread, which would block asynchronous tests
def browser() -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian, Ubuntu: apt install chromium)")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        flags = ["--host-resolver-rules=MAP *.example 127.0.0.1, MAP *.lan 127.0.0.1, MAP server 127.0.0.1"]
        flags += ["--disable-features=LocalNetworkAccessChecks"]  # the server must be safe without it, too
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


class Site:
    """A server with a fake engine."""

    def __init__(self, url: str, engine: FakeEngine) -> None:
        self.url = url
        self.engine = engine

    def reset(self) -> None:
        wait_until(lambda: self.engine.running == 0, 20)  # requests of the previous test
        self.engine.script, self.engine.reason, self.engine.forgets = each_page(ANSWER), None, False
        for recorded in (self.engine.pages, self.engine.finished, self.engine.aborted):
            recorded.clear()


def serve_site(settings: Settings, **more: Any) -> Iterator[Site]:
    engine = FakeEngine()
    with served(create_app(Runtime.build(Settings(**{**settings.model_dump(), **more}), engine))) as (host, port):
        yield Site(f"http://{host}:{port}", engine)


@pytest.fixture(scope="session")
def shared_site(settings: Settings) -> Iterator[Site]:
    yield from serve_site(settings)


@pytest.fixture(scope="session")
def shared_site_with_key(settings: Settings) -> Iterator[Site]:
    yield from serve_site(settings, API_KEYS=KEY)


@pytest.fixture
def site(shared_site: Site) -> Site:
    shared_site.reset()
    return shared_site


@pytest.fixture
def site_with_key(shared_site_with_key: Site) -> Site:
    shared_site_with_key.reset()
    return shared_site_with_key


OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Return a function that opens the page of a site in a new browser context.

    The test fails if a page raises an error, opens a dialog or a popup, or sends a request to another host.
    """
    contexts: list[BrowserContext] = []
    violations: list[str] = []

    def open_site(site: Site, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": WINDOW, "locale": "en-GB", "reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        tab = context.new_page()
        tab.on("pageerror", lambda error: violations.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (violations.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("popup", lambda popup: violations.append(f"popup: {popup.url}"))
        tab.on(
            "request",
            lambda request: request.url.startswith((site.url, "data:", "blob:")) or violations.append(request.url),
        )
        tab.goto(f"{site.url}/ui/")
        tab.locator("#model:not(:empty), #error:not([hidden])").first.wait_for(state="attached")
        return tab

    yield open_site
    for context in contexts:
        context.close()
    assert not violations


@pytest.fixture
def tab(site: Site, open_tab: OpenTab) -> Tab:
    return open_tab(site)
