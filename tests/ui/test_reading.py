"""Reading images and documents: streaming, boxes, several pages, stopping, prompts and modes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.modes import MODES
from ocr_server.output.blocks import blocks
from tests.ocr_server.conftest import endless
from tests.reliability.served import wait_until
from tests.ui.browser import ANSWER, PAPERS, RECEIPT, Gate, choose_file, each_page, wait_until_read
from tests.ui.conftest import OpenTab, Site

pytestmark = pytest.mark.browser


class TestStreaming:
    def test_text_and_boxes_appear_while_the_page_is_read(self, site: Site, tab: Tab) -> None:
        half = ANSWER.index("Trees have")
        gate = site.engine.script = Gate(ANSWER[:half], ANSWER[half:])
        choose_file(tab, RECEIPT)
        expect(tab.locator("#blocks h1")).to_have_text("Of trees")
        expect(tab.locator(".box")).to_have_count(2)
        expect(tab.locator("#status")).to_have_text("Reading receipt.png")
        expect(tab.locator("#blocks table")).to_have_count(0)
        gate.open()
        wait_until_read(tab)
        expect(tab.locator("#blocks table")).to_have_count(1)
        expect(tab.locator(".box")).to_have_count(4)
        expect(tab.locator("#stop")).to_be_hidden()

    def test_an_incomplete_marker_is_not_shown(self, site: Site, tab: Tab) -> None:
        gate = site.engine.script = Gate("Seen. <|ref|>title<|/ref|><|det|>[[1, 2", ", 3, 4]]<|/det|>\nEnd")
        choose_file(tab, RECEIPT)
        expect(tab.locator("#blocks")).to_have_text("Seen.")
        gate.open()
        wait_until_read(tab)
        expect(tab.locator("#blocks")).to_contain_text("End")

    def test_finished_blocks_are_announced_once(self, site: Site, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        announced = tab.locator("#live-region[aria-live=polite] p")
        expect(announced).to_have_count(4)
        expect(announced.nth(1)).to_contain_text("Trees have")

    def test_formulas_are_rendered_in_text_and_tables(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        expect(tab.locator("#blocks p math msup")).to_have_count(1)
        expect(tab.locator("#blocks td math")).to_have_count(1)
        expect(tab.locator("#blocks em")).to_have_text("leaves")


class TestPositions:
    def test_boxes_have_the_models_coordinates(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        sheet, box = tab.locator("#boxes").bounding_box(), tab.locator(".box").nth(1).bounding_box()
        assert sheet is not None
        assert box is not None
        for axis, side, start, size in (("x", "width", 50, 850), ("y", "height", 200, 200)):
            assert box[axis] - sheet[axis] == pytest.approx(sheet[side] * start / 999, abs=2)
            assert box[side] == pytest.approx(sheet[side] * size / 999, abs=3)

    def test_hovering_highlights_box_and_block(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        box, block = tab.locator(".box").nth(1), tab.locator(".block").nth(1)
        box.hover()
        expect(tab.locator(".block.highlighted")).to_have_count(1)
        expect(block).to_have_class("block located highlighted")
        tab.mouse.move(5, 5)
        expect(tab.locator(".highlighted")).to_have_count(0)
        block.hover()
        expect(box).to_have_class("box highlighted")

    def test_keyboard_focus_highlights_box_and_block(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        tab.locator(".box").first.focus()
        tab.keyboard.press("ArrowDown")
        expect(tab.locator(".box").nth(1)).to_be_focused()
        expect(tab.locator(".block").nth(1)).to_have_class("block located highlighted")
        tab.locator(".block").nth(1).focus()
        tab.keyboard.press("ArrowDown")
        expect(tab.locator(".box").nth(2)).to_have_class("box highlighted")

    def test_figures_are_cropped_from_the_page(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        figure = tab.locator("#blocks .figure img")
        expect(figure).to_be_visible()
        width, height = Image.open(RECEIPT).size
        shown = figure.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        left, top, right, bottom = blocks(ANSWER, width, height)[2].boxes[0]
        assert shown == [right - left, bottom - top]


class TestDocuments:
    def test_pages_are_read_in_order_and_can_be_selected(self, site: Site, tab: Tab) -> None:
        site.engine.script = each_page("First **page**", "Second", "Third")
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        thumbnails = tab.locator("#strip button")
        expect(thumbnails).to_have_count(3)
        document = pypdfium2.PdfDocument(PAPERS)
        pictures = set()
        texts = set()
        for number in range(3):
            thumbnails.nth(number).click()
            expect(thumbnails.nth(number)).to_have_attribute("aria-current", "page")
            expect(thumbnails.nth(number)).to_have_attribute("aria-label", f"Page {number + 1}: read")
            ratio = "image => image.decode().then(() => image.naturalWidth / image.naturalHeight)"
            width, height = document[number].get_size()
            assert tab.locator("#picture").evaluate(ratio) == pytest.approx(width / height, rel=0.01)
            pictures.add(tab.locator("#picture").get_attribute("src"))
            texts.add(tab.locator("#blocks").inner_text())
        assert len(pictures) == 3
        assert texts == {"First page", "Second", "Third"}
        tab.get_by_role("tab", name="Raw text").click()
        expect(tab.locator("#raw")).not_to_contain_text("Page Split")

    def test_the_strip_shows_the_state_of_each_page(self, site: Site, tab: Tab) -> None:
        gate = site.engine.script = Gate("Some ", "text")
        choose_file(tab, PAPERS)
        expect(tab.locator("#strip button").first).to_have_attribute("data-state", "reading")
        expect(tab.locator("#strip button").last).to_have_attribute("data-state", "waiting")
        expect(tab.locator("#status")).to_have_text("Reading page 1 of 3")
        gate.open()
        wait_until_read(tab)
        expect(tab.locator("#strip button[data-state=stop]")).to_have_count(3)

    def test_the_page_image_appears_before_the_text(self, site: Site, tab: Tab) -> None:
        gate = site.engine.script = Gate("", "text")
        choose_file(tab, PAPERS)
        expect(tab.locator("#picture[src^='blob:']")).to_be_visible()
        expect(tab.locator("#blocks")).to_be_empty()
        expect(tab.locator("#strip button").first).to_have_attribute("data-state", "reading")
        gate.open()
        wait_until_read(tab)

    def test_only_the_selected_pages_are_read(self, site: Site, tab: Tab) -> None:
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        tab.get_by_label("Pages", exact=True).fill("2-3")
        gate = site.engine.script = Gate("Some ", "text")
        tab.get_by_role("button", name="Read", exact=True).click()
        expect(tab.locator(".page-button-number")).to_have_text(["2", "3"])
        gate.open()
        wait_until_read(tab)
        expect(tab.locator(".page-button-number")).to_have_text(["2", "3"])


class TestStop:
    def test_stopping_aborts_the_request_in_the_engine(self, site: Site, tab: Tab) -> None:
        site.engine.script = endless
        choose_file(tab, RECEIPT)
        expect(tab.locator("#blocks")).to_contain_text("on on on")
        assert site.engine.aborted == []
        tab.get_by_role("button", name="Stop").click()
        wait_until(lambda: site.engine.aborted == [0], 20)
        expect(tab.locator("#status")).to_have_text("Stopped.")
        expect(tab.locator("#blocks")).to_contain_text("on on on")
        expect(tab.locator("#error")).to_be_hidden()
        expect(tab.get_by_role("button", name="Read", exact=True)).to_be_visible()

    def test_another_file_aborts_it_too(self, site: Site, tab: Tab) -> None:
        site.engine.script = endless
        choose_file(tab, RECEIPT)
        expect(tab.locator("#blocks")).to_contain_text("on on on")
        site.engine.script = each_page("The other one")
        choose_file(tab, PAPERS)
        wait_until(lambda: site.engine.aborted == [0], 20)
        wait_until_read(tab)
        expect(tab.locator("#blocks")).to_have_text("The other one")


class TestRequestOptions:
    @pytest.mark.parametrize(
        ("name", "prompt"),
        [("Text only", DEEPSEEK_OCR.prompts["free"]), ("Text with positions", DEEPSEEK_OCR.prompts["lines"])],
    )
    def test_a_prompt_button_sets_its_prompt(self, site: Site, tab: Tab, name: str, prompt: str) -> None:
        tab.get_by_label(name).check(force=True)
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        assert site.engine.pages[0].prompt == prompt

    def test_a_custom_prompt_is_used(self, site: Site, tab: Tab) -> None:
        tab.get_by_label("Prompt").fill("What is the 'total'?")
        expect(tab.locator("#prompts input:checked")).to_have_count(0)
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        assert site.engine.pages[0].prompt == "What is the 'total'?"

    @pytest.mark.parametrize("mode", MODES)
    def test_the_displayed_token_count_is_the_engines(self, site: Site, tab: Tab, mode: str, tmp_path: Path) -> None:
        Image.new("RGB", (1500, 900), "white").save(tmp_path / "wide.png")
        tab.get_by_label("Mode").select_option(mode)
        choose_file(tab, tmp_path / "wide.png")
        wait_until_read(tab)
        tokens = site.engine.pages[0].image.num_tokens
        expect(tab.locator("#tokens")).to_have_text(f"{tokens} vision tokens")


class TestTabs:
    def test_raw_text_is_exact_and_blocks_match_the_servers(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        tab.get_by_role("tab", name="Raw text").click()
        assert tab.locator("#raw").evaluate("raw => raw.textContent") == ANSWER
        tab.keyboard.press("ArrowRight")
        width, height = Image.open(RECEIPT).size
        page = json.loads(tab.locator("#json").inner_text())
        assert [(each["label"], each["text"], each["boxes"]) for each in page["blocks"]] == [
            (block.label, block.text, [list(box) for box in block.boxes]) for block in blocks(ANSWER, width, height)
        ]
        assert (page["width"], page["height"], page["finish_reason"]) == (width, height, "stop")


class TestOpeningFiles:
    @pytest.mark.parametrize("method", ["drop", "paste"])
    def test_dropped_and_pasted_files_are_read(self, site: Site, tab: Tab, method: str) -> None:
        tab.evaluate(
            """([method, base64]) => {
                const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], "scan.png", { type: "image/png" }));
                const event = method === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
                document.body.dispatchEvent(event);
            }""",
            [method, base64.b64encode(RECEIPT.read_bytes()).decode()],
        )
        wait_until_read(tab)
        expect(tab.locator("#name")).to_have_text("scan.png")

    def test_an_image_format_unknown_to_browsers_is_displayed(self, site: Site, tab: Tab, tmp_path: Path) -> None:
        pages = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
        pages[0].save(tmp_path / "scan.tiff", save_all=True, append_images=pages[1:])
        choose_file(tab, tmp_path / "scan.tiff")
        wait_until_read(tab)
        assert tab.locator("#picture").evaluate("image => image.decode().then(() => image.naturalWidth)") == 300

    def test_a_phone_offers_its_camera(self, site: Site, open_tab: OpenTab) -> None:
        phone = open_tab(site, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
        camera = phone.locator("#photo")
        expect(camera).to_have_attribute("capture", "environment")
        expect(phone.locator("#drop").get_by_text("Take a photo")).to_be_visible()
        camera.set_input_files(RECEIPT)
        wait_until_read(phone)
