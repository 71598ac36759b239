"""What goes wrong is said in a sentence: requests, pages, connections, keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.errors import EngineFailure, InvalidRequest
from tests.ocr_server.conftest import fails, says
from tests.ocr_server.intake.pdfs import encrypted
from tests.ui.browser import PAPERS, RECEIPT, give, wait_read
from tests.ui.conftest import KEY, Opens, Site


def said(tab: Tab, words: str) -> None:
    error = tab.get_by_role("alert")
    expect(error).to_contain_text(words)
    assert "{" not in error.inner_text()


class TestErrors:
    def test_a_refusal_is_the_servers_own_sentence(self, tab: Tab, tmp_path: Path) -> None:
        (tmp_path / "torn.png").write_bytes(RECEIPT.read_bytes()[:200])
        give(tab, tmp_path / "torn.png")
        said(tab, "picture")
        expect(tab.locator("#stop")).to_be_hidden()
        give(tab, RECEIPT)
        wait_read(tab)
        expect(tab.get_by_role("alert")).to_be_hidden()

    def test_what_breaks_in_the_middle_keeps_what_has_come(self, site: Site, tab: Tab) -> None:
        site.engine.script = fails(EngineFailure("The engine failed on this page."), "Half of ", "the page")
        give(tab, RECEIPT)
        said(tab, "The server failed: The engine failed on this page.")
        expect(tab.locator("#blocks")).to_have_text("Half of the page")

    def test_a_full_server_says_when_to_come_back(self, tab: Tab) -> None:
        body = json.dumps({"error": {"message": "Full.", "code": "rate_limit_exceeded"}})
        tab.route(
            "**/v1/chat/completions", lambda route: route.fulfill(status=429, body=body, headers={"retry-after": "17"})
        )
        give(tab, RECEIPT)
        said(tab, "The server is full just now. Try again in 17 s.")

    def test_a_server_that_cannot_read_says_why(self, site: Site, tab: Tab) -> None:
        site.engine.reason = "The engine is being restarted."
        give(tab, RECEIPT)
        said(tab, "can't read pages just now: The engine is being restarted.")

    def test_a_server_that_loads_is_waited_for(self, site: Site, open_tab: Opens) -> None:
        site.engine.reason = "The model is being loaded."
        tab = open_tab(site)
        said(tab, "The model is being loaded.")
        site.engine.reason = None
        expect(tab.get_by_role("alert")).to_be_hidden()

    @pytest.mark.parametrize("address", ["**/v1/chat/completions", "**/v1/ocr"])
    def test_a_lost_connection_is_said(self, tab: Tab, address: str) -> None:
        tab.route(address, lambda route: route.abort())
        give(tab, PAPERS)
        if address.endswith("ocr"):
            wait_read(tab)
            tab.locator("summary", has_text="Download").click()
            tab.locator("#save-pdf").click()
        said(tab, "can't be reached")

    def test_a_stream_that_ends_too_soon_is_no_success(self, tab: Tab) -> None:
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]})
        tab.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(body=f"data: {chunk}\n\n", content_type="text/event-stream"),
        )
        give(tab, RECEIPT)
        said(tab, "the connection broke")
        expect(tab.locator("#blocks")).to_have_text("Half")

    def test_an_answer_that_is_none_is_said(self, tab: Tab) -> None:
        tab.route("**/v1/chat/completions", lambda route: route.fulfill(body="data: <html>\n\ndata: [DONE]\n\n"))
        give(tab, RECEIPT)
        said(tab, "The server failed:")

    def test_a_page_that_fails_says_so_and_loses_no_other(self, site: Site, tab: Tab) -> None:
        broken, fine = fails(InvalidRequest("This page is too much.")), says("Fine")
        site.engine.script = lambda number, page: (broken if number == 1 else fine)(number, page)
        give(tab, PAPERS)
        expect(tab.locator("#status")).to_contain_text("not whole")
        expect(tab.locator("#strip button[data-state=error]")).to_have_count(1)
        expect(tab.locator("#strip button[data-state=stop]")).to_have_count(2)
        tab.locator("#strip button[data-state=error]").click()
        expect(tab.locator("#page-error")).to_contain_text("could not be read: This page is too much.")

    def test_an_answer_that_was_cut_off_says_so(self, site: Site, tab: Tab) -> None:
        site.engine.script = says("Not all of", finish="length")
        give(tab, RECEIPT)
        expect(tab.locator("#status")).to_have_text("Read, but not whole: Page 1: cut off.")

    def test_an_encrypted_pdf_asks_for_its_password(self, tab: Tab, tmp_path: Path) -> None:
        (tmp_path / "secret.pdf").write_bytes(encrypted(b"", "swordfish"))
        give(tab, tmp_path / "secret.pdf")
        said(tab, "password")
        password = tab.get_by_label("Password")
        expect(password).to_be_focused()
        password.fill("swordfish")
        password.press("Enter")
        wait_read(tab)


class TestKey:
    def test_the_field_appears_and_the_key_opens(self, locked: Site, open_tab: Opens) -> None:
        tab = open_tab(locked)
        said(tab, "needs an API key")
        field = tab.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("sk-wrong")
        field.press("Enter")
        said(tab, "does not accept this API key")
        field.fill(KEY)
        field.press("Enter")
        expect(tab.get_by_role("alert")).to_be_hidden()
        give(tab, RECEIPT)
        wait_read(tab)

    def test_it_stays_in_the_tab(self, locked: Site, open_tab: Opens) -> None:
        tab = open_tab(locked)
        tab.get_by_label("API key").fill(KEY)
        tab.get_by_label("API key").press("Enter")
        expect(tab.get_by_role("alert")).to_be_hidden()
        tab.reload()
        expect(tab.locator("#model")).not_to_be_empty()
        assert KEY not in tab.evaluate("() => JSON.stringify({ ...localStorage }) + document.cookie + location")
        assert tab.evaluate("() => Object.values({ ...sessionStorage })") == [KEY]

    def test_without_keys_there_is_no_field(self, tab: Tab) -> None:
        expect(tab.get_by_label("API key")).to_be_hidden()
