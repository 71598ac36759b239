"""A real browser on the page, before the app with a played engine."""

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
SECONDS = 30_000
"""Milliseconds, for a machine that is busy with something else."""

ANSWER = (
    f"{marker('title', (50, 40, 600, 180))}\n# Of trees\n\n"
    f"{marker('text', (50, 200, 900, 400))}\nTrees have *leaves*: \\(A = \\pi r^2\\).\n\n"
    f"{marker('image', (100, 450, 600, 850))}\n\n"
    f"{marker('table', (50, 860, 900, 990))}\n<table><tr><td>Oak</td><td>\\(h < 20\\)</td></tr></table>\n"
)
"""Blocks 0 to 3: a title, a text, a figure, a table."""


class Gate:
    """A script that says `before`, waits until it is opened, and says `after`."""

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, _: int, __: Page) -> AsyncGenerator[PageDelta]:
        yield delta(self.before)
        while not self._open.is_set():  # noqa: ASYNC110  # it is opened in another thread
            await asyncio.sleep(0.01)
        yield delta(self.after, finish="stop")


def each_page(*texts: str) -> Script:
    """The pages in the order in which the engine is given them; the last text for all that follow."""

    async def script(number: int, _: Page) -> AsyncGenerator[PageDelta]:
        text = texts[min(number, len(texts) - 1)]
        for start in range(0, len(text), 7):
            yield delta(text[start : start + 7])
        yield delta("", finish="stop")

    return script


def give(tab: Tab, file: Path | dict[str, Any]) -> None:
    """Choose a file, as the first or as another one."""
    tab.locator("#file" if tab.locator("#drop").is_visible() else "#other").set_input_files(file)


DONE = re.compile(r"^Read\b")


def wait_read(tab: Tab, status: str | re.Pattern[str] = DONE) -> None:
    """Until all is read, unless `status` says otherwise."""
    expect(tab.locator("#status")).to_have_text(status, timeout=SECONDS)
