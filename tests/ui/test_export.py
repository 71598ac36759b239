"""Exports from the page: downloads, the clipboard, and the request as code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.output.markdown import to_markdown
from tests.ui.browser import ANSWER, PAPERS, RECEIPT, choose_file, wait_until_read
from tests.ui.conftest import KEY, OpenTab, Site

pytestmark = pytest.mark.browser

CLIPBOARD = {"permissions": ["clipboard-read", "clipboard-write"]}


def download(tab: Tab, button: str) -> tuple[str, bytes]:
    """Press a button of the download menu; return the name and content of the file."""
    tab.locator("summary", has_text="Download").click()
    with tab.expect_download() as started:
        tab.locator(button).click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def copied(tab: Tab, button: str) -> str:
    """Press a copy button; return the clipboard's text. Ends when the page has removed its message again."""
    if button != "#copy":
        tab.locator("summary", has_text="Code").click()
    tab.locator(button).click()
    expect(tab.locator("#status")).to_have_text("Copied.")
    text: str = tab.evaluate("() => navigator.clipboard.readText()")
    expect(tab.locator("#status")).not_to_have_text("Copied.")
    return text


class TestFiles:
    def test_markdown_is_saved_with_its_figures(self, tab: Tab) -> None:
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        name, data = download(tab, "#save-markdown")
        assert name == "papers.zip"
        archive = zipfile.ZipFile(io.BytesIO(data))
        figures = [f"images/page-{number}-figure-1.jpeg" for number in (1, 2, 3)]
        assert sorted(archive.namelist()) == [*figures, "papers.md"]
        text = archive.read("papers.md").decode()
        assert text == "\n\n".join(to_markdown(ANSWER, figures=[figure]) for figure in figures) + "\n"
        assert all(Image.open(io.BytesIO(archive.read(figure))).format == "JPEG" for figure in figures)

    def test_blocks_are_saved_as_json(self, tab: Tab) -> None:
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        name, data = download(tab, "#save-json")
        assert name == "papers.json"
        pages = json.loads(data)["pages"]
        assert [page["page"] for page in pages] == [1, 2, 3]
        assert b'"model_boxes": [\n            [50, 40, 600, 180]\n' in data
        assert [block["label"] for block in pages[2]["blocks"]] == ["title", "text", "image", "table"]

    def test_the_overlay_is_the_page_image_with_boxes(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        name, data = download(tab, "#save-overlay")
        assert name == "receipt-page-1.png"
        overlay, page = Image.open(io.BytesIO(data)).convert("RGB"), Image.open(RECEIPT).convert("RGB")
        assert overlay.size == page.size
        inside, outside = (int(page.width * 0.3), int(page.height * 0.7)), (page.width - 2, page.height // 2)
        assert overlay.getpixel(inside) != page.getpixel(inside)
        assert overlay.getpixel(outside) == page.getpixel(outside)

    def test_the_overlays_of_a_document_are_saved_as_a_pdf(self, tab: Tab) -> None:
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        name, data = download(tab, "#save-pdf")
        assert name == "papers-boxes.pdf"
        assert len(pypdfium2.PdfDocument(data)) == 3


class TestClipboard:
    @pytest.fixture
    def tab(self, site: Site, open_tab: OpenTab) -> Tab:
        tab = open_tab(site, **CLIPBOARD)
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        return tab

    def test_the_selected_tab_is_copied(self, tab: Tab) -> None:
        assert copied(tab, "#copy") == to_markdown(ANSWER, figures=["images/page-1-figure-1.jpeg"])
        tab.get_by_role("tab", name="Raw text").click()
        assert copied(tab, "#copy") == ANSWER

    def test_copying_works_without_the_clipboard_api(self, site: Site, open_tab: OpenTab, tab: Tab) -> None:
        tab.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        tab.locator("#copy").click()
        expect(tab.locator("#status")).to_have_text("Copied.")
        tab.get_by_label("Prompt").fill("")
        tab.get_by_label("Prompt").press("Control+V")
        expect(tab.get_by_label("Prompt")).to_have_value(to_markdown(ANSWER, figures=["images/page-1-figure-1.jpeg"]))


SPECIAL_CHARACTERS = """Where's "$HOME", `id` \\ and 中文?"""


class TestCode:
    """The copied code sends the same request as the page."""

    def run(self, command: list[str], folder: Path, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read(self, site: Site, open_tab: OpenTab, file: Path) -> Tab:
        tab = open_tab(site, **CLIPBOARD)
        tab.get_by_label("Prompt").fill(SPECIAL_CHARACTERS)
        tab.get_by_label("Mode").select_option("small")
        choose_file(tab, file)
        wait_until_read(tab)
        return tab

    @pytest.mark.parametrize("name", ["page.png", "it's a $page.pdf"])
    @pytest.mark.parametrize("language", ["curl", "python"])
    def test_the_copied_code_runs(
        self, site: Site, open_tab: OpenTab, tmp_path: Path, name: str, language: str
    ) -> None:
        file = tmp_path / name
        file.write_bytes((RECEIPT if name.endswith("png") else PAPERS).read_bytes())
        tab = self.read(site, open_tab, file)
        requests = [(page.prompt, page.image.num_tokens) for page in site.engine.pages]
        code = copied(tab, f"#copy-{language}")
        output = self.run(["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code], tmp_path)
        assert ("data: [DONE]" if language == "curl" else "Trees have") in output
        assert [(page.prompt, page.image.num_tokens) for page in site.engine.pages[len(requests) :]] == requests
        assert requests[0][0] == SPECIAL_CHARACTERS

    def test_the_copied_code_refers_to_the_key_without_containing_it(
        self, site_with_key: Site, open_tab: OpenTab, tmp_path: Path
    ) -> None:
        tab = open_tab(site_with_key, **CLIPBOARD)
        tab.get_by_label("API key").fill(KEY)
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        (tmp_path / "receipt.png").write_bytes(RECEIPT.read_bytes())
        for language, command in (("curl", ["bash", "-c"]), ("python", [sys.executable, "-c"])):
            code = copied(tab, f"#copy-{language}")
            assert KEY not in code
            before = len(site_with_key.engine.pages)
            self.run([*command, code], tmp_path, OPENAI_API_KEY=KEY)
            assert len(site_with_key.engine.pages) == before + 1
