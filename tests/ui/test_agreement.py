"""The JavaScript of the page computes the same results as the Python code of the server."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.modes import MODES
from ocr_server.output.blocks import blocks
from ocr_server.output.figures import figure_boxes, figure_name
from ocr_server.output.markdown import to_markdown
from tests.ocr_server.conftest import examples
from tests.ocr_server.output.answers import PAGE, WORDS, answers
from tests.ui.conftest import Site

pytestmark = pytest.mark.browser

WIDTH, HEIGHT = 1191, 1684
ODD_SPACE = re.compile("[\x1c-\x1f\x85\ufeff]")
"""Characters that are white space in only one of Python and JavaScript."""


@pytest.fixture(scope="module")
def modules(browser: Browser, shared_site: Site) -> Any:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{shared_site.url}/ui/")
    yield tab
    context.close()


def test_vision_token_counts_agree(modules: Tab) -> None:
    sizes = [(random.Random(number).randint(1, 4000), random.Random(-number).randint(1, 4000)) for number in range(300)]
    sizes += [(640, 640), (641, 640), (640, 641), (1024, 1024), (1025, 1), (1, 4000), (1280, 640), (960, 1440)]
    sizes += [(height * 5 // 2, height) for height in range(300, 900, 10)]  # as close to 2 × 1 as to 3 × 1 tiles
    computed = modules.evaluate(
        """async (sizes) => {
            const { MODES, visionTokens, maxVisionTokens } = await import("./modes.js");
            return Object.keys(MODES).map((name) =>
                [name, maxVisionTokens(name), sizes.map(([width, height]) => visionTokens(name, width, height))]);
        }""",
        sizes,
    )
    assert [name for name, _, _ in computed] == list(MODES)
    for name, maximum, counts in computed:
        mode = MODES[name]
        assert maximum == mode.max_vision_tokens()
        assert counts == [mode.vision_tokens(mode.crop_grid(*size)) for size in sizes], name


def test_prompts_agree(modules: Tab) -> None:
    read = 'async () => (await import("./family.js")).FAMILY.prompts'
    assert modules.evaluate(read) == DEEPSEEK_OCR.prompts


class TestAnswers:
    @given(batch=st.lists(answers.filter(lambda answer: not ODD_SPACE.search(answer)), min_size=40, max_size=40))
    @examples(8)
    def test_blocks_and_markdown_agree(self, modules: Tab, batch: list[str]) -> None:
        self.compare(modules, [PAGE, WORDS, *batch])

    def test_coordinates_agree(self, modules: Tab) -> None:
        boxes = [
            "[-5, 0, 99999, 999]",
            "[1.5, 2.49, -0.5, 7.0001]",
            "[1,2,3]",
            "[1,2,3,4,5]",
            "[123456, 1, 2, 3]",
            "[1e3,1,1,1]",
        ]
        self.compare(modules, [f"<|ref|>text<|/ref|><|det|>[{box}]<|/det|>\nSome" for box in boxes])

    def compare(self, modules: Tab, batch: list[str]) -> None:
        found = modules.evaluate(
            """async ([batch, width, height]) => {
                const { blocksOf, pixelBox, toMarkdown } = await import("./grounding.js");
                return batch.map((answer) => [
                    toMarkdown(answer, (number) => `page-1-figure-${number}.jpeg`),
                    blocksOf(answer).map(({ label, text, modelBoxes }) =>
                        [label, text, modelBoxes, modelBoxes.map((box) => pixelBox(box, width, height))]),
                ]);
            }""",
            [batch, WIDTH, HEIGHT],
        )
        for answer, (markdown, page_blocks) in zip(batch, found, strict=True):
            server_blocks = blocks(answer, WIDTH, HEIGHT)
            names = [figure_name(1, number + 1) for number in range(len(figure_boxes(server_blocks)))]
            assert markdown == to_markdown(answer, figures=names), answer
            assert page_blocks == [
                [block.label, block.text, [list(box) for box in block.model_boxes], [list(box) for box in block.boxes]]
                for block in server_blocks
            ], answer
