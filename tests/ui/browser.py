"""Helpers for tests of the web page in a real browser."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.reading.page import Page, PageDelta
from tests.ocr_server.conftest import Script, delta
from tests.ocr_server.output.answers import marker

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECEIPT = EXAMPLES / "receipt.png"
PAPERS = EXAMPLES / "papers.pdf"
TIMEOUT_MS = 30_000
"""Limit for every wait in the browser; generous, so that a busy machine breaks no test."""

ANSWER = (
    f"{marker('title', (50, 40, 600, 180))}\n# Of trees\n\n"
    f"{marker('text', (50, 200, 900, 400))}\nTrees have *leaves*: \\(A = \\pi r^2\\).\n\n"
    f"{marker('image', (100, 450, 600, 850))}\n\n"
    f"{marker('table', (50, 860, 900, 990))}\n<table><tr><td>Oak</td><td>\\(h < 20\\)</td></tr></table>\n"
)
"""The answer of the fake engine. Its blocks 0 to 3 are a title, a text, a figure and a table."""


class Gate:
    """An engine script that yields `before`, waits for `open()`, and then yields `after`."""

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, _: int, __: Page) -> AsyncGenerator[PageDelta]:
        yield delta(self.before)
        while not self._open.is_set():  # noqa: ASYNC110  # the event is set in another thread
            await asyncio.sleep(0.01)
        yield delta(self.after, finish="stop")


def each_page(*texts: str) -> Script:
    """Return an engine script that answers the n-th page with the n-th text, and later pages with the last text."""

    async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
        text = texts[min(number, len(texts) - 1)]
        for start in range(0, len(text), 7):
            yield delta(text[start : start + 7])
        yield delta("", finish="stop")

    return script


def choose_file(tab: Tab, file: Path | dict[str, Any]) -> None:
    """Choose a file, either the first one or another one afterwards."""
    tab.locator("#file" if tab.locator("#drop").is_visible() else "#other").set_input_files(file)


DONE = re.compile(r"^Read\b")


def wait_until_read(tab: Tab, status: str | re.Pattern[str] = DONE) -> None:
    """Wait until the status line shows that reading is complete, or shows `status`."""
    expect(tab.locator("#status")).to_have_text(status, timeout=TIMEOUT_MS)
