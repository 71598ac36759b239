"""Chromium, a server with a played engine, and a tab that must not leave it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright
from playwright.sync_api import Page as Tab

from config import Settings
from ocr_server.app import create_app
from tests.ocr_server.conftest import FakeEngine, settings
from tests.reliability.served import served, wait_until
from tests.ui.browser import ANSWER, SECONDS, each_page

__all__ = ["settings"]

KEY = "sk-open-sesame"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WINDOW = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")  # while it is open, a loop runs in this thread, and no asynchronous test can
def browser() -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian, Ubuntu: apt install chromium)")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


class Site:
    """A server with a played engine."""

    def __init__(self, url: str, engine: FakeEngine) -> None:
        self.url = url
        self.engine = engine

    def reset(self) -> None:
        wait_until(lambda: self.engine.running == 0, 20)  # what the test before has left
        self.engine.script, self.engine.reason, self.engine.forgets = each_page(ANSWER), None, False
        for kept in (self.engine.pages, self.engine.finished, self.engine.aborted):
            kept.clear()


def site_with(settings: Settings, **more: Any) -> Iterator[Site]:
    engine = FakeEngine()
    with served(create_app(Settings(**{**settings.model_dump(), **more}), engine)) as (host, port):
        yield Site(f"http://{host}:{port}", engine)


@pytest.fixture(scope="session")
def open_site(settings: Settings) -> Iterator[Site]:
    yield from site_with(settings)


@pytest.fixture(scope="session")
def locked_site(settings: Settings) -> Iterator[Site]:
    yield from site_with(settings, API_KEYS=KEY)


@pytest.fixture
def site(open_site: Site) -> Site:
    open_site.reset()
    return open_site


@pytest.fixture
def locked(locked_site: Site) -> Site:
    locked_site.reset()
    return locked_site


Opens = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Opens]:
    """Opens the page of a site. It must make no error and ask nobody else for anything."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opens(site: Site, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": WINDOW, "locale": "en-GB", "reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(SECONDS)
        tab = context.new_page()
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("popup", lambda popup: wrong.append(f"popup: {popup.url}"))
        tab.on(
            "request", lambda request: request.url.startswith((site.url, "data:", "blob:")) or wrong.append(request.url)
        )
        tab.goto(f"{site.url}/ui/")
        tab.locator("#model:not(:empty), #error:not([hidden])").first.wait_for(state="attached")
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def tab(site: Site, open_tab: Opens) -> Tab:
    return open_tab(site)
