"""Errors are shown as a message: failed requests and pages, lost connections, API keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.errors import EngineFailure, InvalidRequest
from tests.ocr_server.conftest import fails, says
from tests.ocr_server.intake.pdfs import encrypted
from tests.ui.browser import PAPERS, RECEIPT, choose_file, wait_until_read
from tests.ui.conftest import KEY, OpenTab, Site

pytestmark = pytest.mark.browser


def expect_error(tab: Tab, words: str) -> None:
    error = tab.get_by_role("alert")
    expect(error).to_contain_text(words)
    assert "{" not in error.inner_text()


class TestErrors:
    def test_a_rejected_request_shows_the_servers_message(self, tab: Tab, tmp_path: Path) -> None:
        (tmp_path / "truncated.png").write_bytes(RECEIPT.read_bytes()[:200])
        choose_file(tab, tmp_path / "truncated.png")
        expect_error(tab, "picture")
        expect(tab.locator("#stop")).to_be_hidden()
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        expect(tab.get_by_role("alert")).to_be_hidden()

    def test_an_error_in_the_stream_keeps_the_text_received_before_it(self, site: Site, tab: Tab) -> None:
        site.engine.script = fails(EngineFailure("The engine failed on this page."), "Half of ", "the page")
        choose_file(tab, RECEIPT)
        expect_error(tab, "The request failed: The engine failed on this page.")
        expect(tab.locator("#blocks")).to_have_text("Half of the page")

    def test_a_busy_server_shows_when_to_retry(self, tab: Tab) -> None:
        body = json.dumps({"error": {"message": "Full.", "code": "rate_limit_exceeded"}})
        tab.route(
            "**/v1/chat/completions", lambda route: route.fulfill(status=429, body=body, headers={"retry-after": "17"})
        )
        choose_file(tab, RECEIPT)
        expect_error(tab, "The server is busy. Try again in 17 s.")

    def test_an_unavailable_engine_shows_the_reason(self, site: Site, tab: Tab) -> None:
        site.engine.reason = "The engine is being restarted."
        choose_file(tab, RECEIPT)
        expect_error(tab, "can't read pages at the moment: The engine is being restarted.")

    def test_the_page_waits_while_the_model_loads(self, site: Site, open_tab: OpenTab) -> None:
        site.engine.reason = "The model is being loaded."
        tab = open_tab(site)
        expect_error(tab, "The model is being loaded.")
        site.engine.reason = None
        expect(tab.get_by_role("alert")).to_be_hidden()

    @pytest.mark.parametrize("address", ["**/v1/chat/completions", "**/v1/ocr"])
    def test_a_lost_connection_shows_an_error(self, tab: Tab, address: str) -> None:
        tab.route(address, lambda route: route.abort())
        choose_file(tab, PAPERS)
        if address.endswith("ocr"):
            wait_until_read(tab)
            tab.locator("summary", has_text="Download").click()
            tab.locator("#save-pdf").click()
        expect_error(tab, "can't be reached")

    def test_a_stream_that_ends_early_shows_an_error(self, tab: Tab) -> None:
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]})
        tab.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(body=f"data: {chunk}\n\n", content_type="text/event-stream"),
        )
        choose_file(tab, RECEIPT)
        expect_error(tab, "the connection was lost")
        expect(tab.locator("#blocks")).to_have_text("Half")

    def test_an_invalid_response_shows_an_error(self, tab: Tab) -> None:
        tab.route("**/v1/chat/completions", lambda route: route.fulfill(body="data: <html>\n\ndata: [DONE]\n\n"))
        choose_file(tab, RECEIPT)
        expect_error(tab, "The request failed:")

    def test_a_failed_page_is_marked_and_the_other_pages_are_read(self, site: Site, tab: Tab) -> None:
        broken, fine = fails(InvalidRequest("This page is too much.")), says("Fine")
        site.engine.script = lambda number, page: (broken if number == 1 else fine)(number, page)
        choose_file(tab, PAPERS)
        expect(tab.locator("#status")).to_contain_text("incomplete")
        expect(tab.locator("#strip button[data-state=error]")).to_have_count(1)
        expect(tab.locator("#strip button[data-state=stop]")).to_have_count(2)
        tab.locator("#strip button[data-state=error]").click()
        expect(tab.locator("#page-error")).to_contain_text("could not be read: This page is too much.")

    def test_a_truncated_answer_is_reported(self, site: Site, tab: Tab) -> None:
        site.engine.script = says("Not all of", finish="length")
        choose_file(tab, RECEIPT)
        expect(tab.locator("#status")).to_have_text("Finished, but incomplete: Page 1: truncated.")

    def test_an_encrypted_pdf_asks_for_its_password(self, tab: Tab, tmp_path: Path) -> None:
        (tmp_path / "secret.pdf").write_bytes(encrypted(b"", "swordfish"))
        choose_file(tab, tmp_path / "secret.pdf")
        expect_error(tab, "password")
        password = tab.get_by_label("Password")
        expect(password).to_be_focused()
        password.fill("swordfish")
        password.press("Enter")
        wait_until_read(tab)


class TestKey:
    def test_the_key_field_appears_and_a_valid_key_is_accepted(self, site_with_key: Site, open_tab: OpenTab) -> None:
        tab = open_tab(site_with_key)
        expect_error(tab, "requires an API key")
        field = tab.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("sk-wrong")
        field.press("Enter")
        expect_error(tab, "rejected this API key")
        field.fill(KEY)
        field.press("Enter")
        expect(tab.get_by_role("alert")).to_be_hidden()
        choose_file(tab, RECEIPT)
        wait_until_read(tab)

    def test_the_key_is_stored_in_the_tab_only(self, site_with_key: Site, open_tab: OpenTab) -> None:
        tab = open_tab(site_with_key)
        tab.get_by_label("API key").fill(KEY)
        tab.get_by_label("API key").press("Enter")
        expect(tab.get_by_role("alert")).to_be_hidden()
        tab.reload()
        expect(tab.locator("#model")).not_to_be_empty()
        assert KEY not in tab.evaluate("() => JSON.stringify({ ...localStorage }) + document.cookie + location")
        assert tab.evaluate("() => Object.values({ ...sessionStorage })") == [KEY]

    def test_without_api_keys_the_field_is_hidden(self, tab: Tab) -> None:
        expect(tab.get_by_label("API key")).to_be_hidden()
