"""The web page in a real browser, with the real engine and the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pypdfium2
import pytest
from live_server import Server
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from tests.ocr_server.conftest import FakeEngine
from tests.ui.browser import EXAMPLES, PAPERS, RECEIPT, choose_file, wait_until_read
from tests.ui.conftest import OpenTab, Site, browser, open_tab

__all__ = ["browser", "open_tab"]

pytestmark = pytest.mark.live


def text_of(name: str) -> str:
    return (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8").strip()


@pytest.fixture
def tab(server: Server, open_tab: OpenTab) -> Tab:
    tab = open_tab(Site(server.url, FakeEngine()))
    tab.get_by_label("Text only").check(force=True)
    tab.get_by_role("tab", name="Raw text").click()
    return tab


def test_an_image_is_read(tab: Tab) -> None:
    choose_file(tab, RECEIPT)
    wait_until_read(tab)
    assert tab.locator("#raw").inner_text().strip() == text_of("receipt")


def test_a_document_is_read_page_by_page(tab: Tab) -> None:
    choose_file(tab, PAPERS)
    wait_until_read(tab)
    found = []
    for thumbnail in tab.locator("#strip button").all():
        thumbnail.click()
        found.append(tab.locator("#raw").inner_text().strip())
    assert found == [text_of("receipt"), text_of("letter"), text_of("sign")]


def test_stopping_aborts_the_requests_in_the_engine(engine_idle: Server, tab: Tab, tmp_path: Path) -> None:
    papers, many = pypdfium2.PdfDocument(PAPERS), pypdfium2.PdfDocument.new()
    for _ in range(30):
        many.import_pages(papers)
    many.save(tmp_path / "many.pdf")
    choose_file(tab, tmp_path / "many.pdf")
    expect(tab.locator("#raw")).not_to_be_empty()
    engine_idle.wait_busy()
    tab.get_by_role("button", name="Stop").click()
    engine_idle.wait_idle()
    expect(tab.locator("#status")).to_have_text("Stopped.")


def test_a_damaged_pdf_shows_an_error(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "truncated.pdf").write_bytes(PAPERS.read_bytes()[:3000])
    choose_file(tab, tmp_path / "truncated.pdf")
    expect(tab.get_by_role("alert")).to_contain_text("The PDF can't be opened")
