"""What leaves the page: copies, files, and the request as something to run."""

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
from tests.ui.browser import ANSWER, PAPERS, RECEIPT, give, wait_read
from tests.ui.conftest import KEY, Opens, Site

CLIPBOARD = {"permissions": ["clipboard-read", "clipboard-write"]}


def saved(tab: Tab, button: str) -> tuple[str, bytes]:
    """The name and content of the file that a button of the menu gives."""
    tab.locator("summary", has_text="Download").click()
    with tab.expect_download() as coming:
        tab.locator(button).click()
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


def copied(tab: Tab, button: str) -> str:
    if button != "#copy":
        tab.locator("summary", has_text="As code").click()
    tab.locator(button).click()
    expect(tab.locator("#status")).to_have_text("Copied.")
    text: str = tab.evaluate("() => navigator.clipboard.readText()")
    return text


class TestFiles:
    def test_markdown_comes_with_its_figures(self, tab: Tab) -> None:
        give(tab, PAPERS)
        wait_read(tab)
        name, data = saved(tab, "#save-markdown")
        assert name == "papers.zip"
        archive = zipfile.ZipFile(io.BytesIO(data))
        figures = [f"images/page-{number}-figure-1.jpeg" for number in (1, 2, 3)]
        assert sorted(archive.namelist()) == [*figures, "papers.md"]
        text = archive.read("papers.md").decode()
        assert text == "\n\n".join(to_markdown(ANSWER, figures=[figure]) for figure in figures) + "\n"
        assert all(Image.open(io.BytesIO(archive.read(figure))).format == "JPEG" for figure in figures)

    def test_blocks_come_as_json(self, tab: Tab) -> None:
        give(tab, PAPERS)
        wait_read(tab)
        name, data = saved(tab, "#save-json")
        assert name == "papers.json"
        pages = json.loads(data)["pages"]
        assert [page["page"] for page in pages] == [1, 2, 3]
        assert b'"model_boxes": [\n            [50, 40, 600, 180]\n' in data
        assert [block["label"] for block in pages[2]["blocks"]] == ["title", "text", "image", "table"]

    def test_the_overlay_is_the_page_with_its_boxes(self, tab: Tab) -> None:
        give(tab, RECEIPT)
        wait_read(tab)
        name, data = saved(tab, "#save-overlay")
        assert name == "receipt-page-1.png"
        overlay, page = Image.open(io.BytesIO(data)).convert("RGB"), Image.open(RECEIPT).convert("RGB")
        assert overlay.size == page.size
        inside, outside = (int(page.width * 0.3), int(page.height * 0.7)), (page.width - 2, page.height // 2)
        assert overlay.getpixel(inside) != page.getpixel(inside)
        assert overlay.getpixel(outside) == page.getpixel(outside)

    def test_a_documents_overlays_are_a_pdf(self, tab: Tab) -> None:
        give(tab, PAPERS)
        wait_read(tab)
        name, data = saved(tab, "#save-pdf")
        assert name == "papers-boxes.pdf"
        assert len(pypdfium2.PdfDocument(data)) == 3


class TestCopies:
    @pytest.fixture
    def tab(self, site: Site, open_tab: Opens) -> Tab:
        tab = open_tab(site, **CLIPBOARD)
        give(tab, RECEIPT)
        wait_read(tab)
        return tab

    def test_what_is_shown_is_copied(self, tab: Tab) -> None:
        assert copied(tab, "#copy") == to_markdown(ANSWER, figures=["images/page-1-figure-1.jpeg"])
        tab.get_by_role("tab", name="Raw text").click()
        tab.wait_for_timeout(2600)
        assert copied(tab, "#copy") == ANSWER

    def test_it_works_where_browsers_give_no_clipboard(self, site: Site, open_tab: Opens, tab: Tab) -> None:
        tab.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        tab.locator("#copy").click()
        expect(tab.locator("#status")).to_have_text("Copied.")
        tab.get_by_label("Prompt").fill("")
        tab.get_by_label("Prompt").press("Control+V")
        expect(tab.get_by_label("Prompt")).to_have_value(to_markdown(ANSWER, figures=["images/page-1-figure-1.jpeg"]))


NASTY = """Where's "$HOME", `id` \\ and 中文?"""


class TestCode:
    """What is copied makes the very request that was made."""

    def run(self, command: list[str], folder: Path, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read(self, site: Site, open_tab: Opens, file: Path) -> Tab:
        tab = open_tab(site, **CLIPBOARD)
        tab.get_by_label("Prompt").fill(NASTY)
        tab.get_by_label("Mode").select_option("small")
        give(tab, file)
        wait_read(tab)
        return tab

    @pytest.mark.parametrize("name", ["page.png", "it's a $page.pdf"])
    @pytest.mark.parametrize("language", ["curl", "python"])
    def test_it_runs(self, site: Site, open_tab: Opens, tmp_path: Path, name: str, language: str) -> None:
        file = tmp_path / name
        file.write_bytes((RECEIPT if name.endswith("png") else PAPERS).read_bytes())
        tab = self.read(site, open_tab, file)
        asked = [(page.prompt, page.image.num_tokens) for page in site.engine.pages]
        code = copied(tab, f"#copy-{language}")
        output = self.run(["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code], tmp_path)
        assert ("data: [DONE]" if language == "curl" else "Trees have") in output
        assert [(page.prompt, page.image.num_tokens) for page in site.engine.pages[len(asked) :]] == asked
        assert asked[0][0] == NASTY

    def test_a_key_is_named_and_not_told(self, locked: Site, open_tab: Opens, tmp_path: Path) -> None:
        tab = open_tab(locked, **CLIPBOARD)
        tab.get_by_label("API key").fill(KEY)
        give(tab, RECEIPT)
        wait_read(tab)
        (tmp_path / "receipt.png").write_bytes(RECEIPT.read_bytes())
        for language, command in (("curl", ["bash", "-c"]), ("python", [sys.executable, "-c"])):
            code = copied(tab, f"#copy-{language}")
            assert KEY not in code
            before = len(locked.engine.pages)
            self.run([*command, code], tmp_path, OPENAI_API_KEY=KEY)
            assert len(locked.engine.pages) == before + 1
            tab.wait_for_timeout(2600)
