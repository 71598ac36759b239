"""The web page in a real browser, before the real engine with the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pypdfium2
import pytest
from live_server import Server
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from tests.ocr_server.conftest import FakeEngine
from tests.ui.browser import EXAMPLES, PAPERS, RECEIPT, give, wait_read
from tests.ui.conftest import Opens, Site, browser, open_tab

__all__ = ["browser", "open_tab"]

pytestmark = pytest.mark.live


def text_of(name: str) -> str:
    return (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8").strip()


@pytest.fixture
def tab(server: Server, open_tab: Opens) -> Tab:
    tab = open_tab(Site(server.url, FakeEngine()))
    tab.get_by_label("Text only").check(force=True)
    tab.get_by_role("tab", name="Raw text").click()
    return tab


def test_a_picture_is_read(tab: Tab) -> None:
    give(tab, RECEIPT)
    wait_read(tab)
    assert tab.locator("#raw").inner_text().strip() == text_of("receipt")


def test_a_document_is_read_page_by_page(tab: Tab) -> None:
    give(tab, PAPERS)
    wait_read(tab)
    found = []
    for leaf in tab.locator("#strip button").all():
        leaf.click()
        found.append(tab.locator("#raw").inner_text().strip())
    assert found == [text_of("receipt"), text_of("letter"), text_of("sign")]


def test_stop_empties_the_engine(engine_idle: Server, tab: Tab, tmp_path: Path) -> None:
    papers, many = pypdfium2.PdfDocument(PAPERS), pypdfium2.PdfDocument.new()
    for _ in range(30):
        many.import_pages(papers)
    many.save(tmp_path / "many.pdf")
    give(tab, tmp_path / "many.pdf")
    expect(tab.locator("#raw")).not_to_be_empty()
    engine_idle.wait_busy()
    tab.get_by_role("button", name="Stop").click()
    engine_idle.wait_idle()
    expect(tab.locator("#status")).to_have_text("Stopped.")


def test_an_error_is_a_sentence(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "torn.pdf").write_bytes(PAPERS.read_bytes()[:3000])
    give(tab, tmp_path / "torn.pdf")
    expect(tab.get_by_role("alert")).to_contain_text("The PDF can't be opened")
