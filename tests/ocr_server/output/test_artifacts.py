"""What is made from a page's answer while its pixels are in memory."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.errors import ReadError, TooLarge
from ocr_server.intake.source_page import SourcePage
from ocr_server.memory import MemoryBudget, Use
from ocr_server.output.artifacts import MAX_FIGURES, ArtifactMaker, Artifacts, PageArtifacts, artifacts_of, page_picture
from ocr_server.output.confidence import TokenSpan
from ocr_server.reading.page import LogprobStep, PageDelta, PageReading, ScoredToken
from tests.ocr_server.output.answers import PAGE, marker

EMPTY_BOX = (5, 5, 5, 5)


def source(width: int = 999, height: int = 999) -> SourcePage:
    return SourcePage(np.full((height, width, 3), 255, np.uint8), None)


def reading(answer: str, *, number: int = 0, logprobs: list[LogprobStep] | None = None) -> PageReading:
    return PageReading(0, 0, number, deltas=[PageDelta(0, answer, 1, 1, logprobs=logprobs, finish_reason="stop")])


async def made(answer: str, wanted: Artifacts, *, of_document: bool = False, number: int = 0) -> PageArtifacts:
    async def load() -> SourcePage:
        return source()

    page = replace(reading(answer, number=number), width=999, height=999)
    return await maker(wanted, of_document=of_document)(page, load)


def maker(wanted: Artifacts, *, of_document: bool = False, capacity: int = 10**9) -> ArtifactMaker:
    memory = MemoryBudget(capacity)
    answer = memory.reserve(Use.ANSWERS)
    return ArtifactMaker(wanted, DEEPSEEK_OCR, of_document=of_document, memory=memory, answer=answer)


def picture(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


class TestWanted:
    @pytest.mark.parametrize("wanted", [Artifacts(*flags) for flags in product([False, True], repeat=3)])
    def test_nothing_is_wanted_only_if_every_flag_is_off(self, wanted: Artifacts) -> None:
        assert bool(wanted) == (wanted != Artifacts())

    def test_two_requests_are_combined(self) -> None:
        assert Artifacts(blocks=True) | Artifacts(overlay=True) == Artifacts(blocks=True, overlay=True)
        assert Artifacts(figures=True) | Artifacts() == Artifacts(figures=True)


class TestMaker:
    async def test_blocks_and_the_names_of_figures(self) -> None:
        artifacts = await made(PAGE, Artifacts(blocks=True), number=4)
        assert [block.label for block in artifacts.blocks] == ["title", "text", "image", "image_caption", "table"]
        (figure,) = artifacts.figures
        assert (figure.name, figure.box, figure.size) == ("page-5-figure-1.jpeg", (80, 320, 480, 600), (400, 280))
        assert (figure.jpeg, artifacts.overlay, artifacts.spans) == (None, None, [])

    async def test_figures_are_cut_out_on_request(self) -> None:
        answer = marker("image", (0, 0, 10, 20), EMPTY_BOX)
        first, empty = (await made(answer, Artifacts(figures=True))).figures
        assert (picture(first.jpeg).format, picture(first.jpeg).size) == ("JPEG", (10, 20))
        assert empty.jpeg is None

    async def test_the_number_of_figures_that_are_cut_out_is_limited(self) -> None:
        answer = marker("image", *[(0, 0, 10, 20)] * (MAX_FIGURES + 1))
        figures = (await made(answer, Artifacts(figures=True))).figures
        assert [figure.jpeg is not None for figure in figures] == [True] * MAX_FIGURES + [False]

    @pytest.mark.parametrize(("of_document", "form"), [(True, "JPEG"), (False, "PNG")])
    async def test_the_overlay_is_a_jpeg_for_a_document_and_a_png_for_a_picture(
        self, of_document: bool, form: str
    ) -> None:
        overlay = picture((await made(PAGE, Artifacts(overlay=True), of_document=of_document)).overlay)
        assert (overlay.format, overlay.size) == (form, (999, 999))
        assert overlay.convert("RGB").getpixel((890, 50)) != (255, 255, 255), "an edge of the title's box"

    async def test_log_probabilities_become_spans(self) -> None:
        steps = [LogprobStep(ScoredToken(token, -0.5), []) for token in ("Hel", "lo")]
        artifacts = await maker(Artifacts(blocks=True))(reading("Hello", logprobs=steps), unneeded)
        assert artifacts.spans == [TokenSpan(0, 3, -0.5), TokenSpan(3, 5, -0.5)]

    async def test_the_picture_is_loaded_only_if_something_is_made_of_it(self) -> None:
        for wanted, answer in ((Artifacts(blocks=True), PAGE), (Artifacts(figures=True), "no figure")):
            await maker(wanted)(reading(answer), unneeded)

    async def test_pictures_for_which_the_budget_has_no_room_are_refused(self) -> None:
        async def load() -> SourcePage:
            return source()

        with pytest.raises(TooLarge):
            await maker(Artifacts(overlay=True), capacity=1000)(reading(PAGE), load)

    async def test_the_overlay_of_a_large_page_is_reduced(self) -> None:
        async def load() -> SourcePage:
            return source(8000, 6000)

        page = replace(reading(PAGE), width=8000, height=6000)
        overlay = picture((await maker(Artifacts(overlay=True))(page, load)).overlay)
        assert overlay.size == (4000, 3000)
        assert overlay.convert("RGB").getpixel((3564, 150)) != (255, 255, 255)


async def unneeded() -> SourcePage:
    raise AssertionError("no picture is needed")


def test_a_page_without_artifacts_has_empty_ones() -> None:
    failed = PageReading(0, 0, 0, error=ReadError("The page is damaged."))
    assert artifacts_of(failed) == PageArtifacts()
    page = reading("Hello")
    page.artifacts = kept = PageArtifacts(overlay=b"x")
    assert artifacts_of(page) is kept


async def test_the_picture_of_a_page_is_a_jpeg_of_its_size() -> None:
    shown = picture(await page_picture(source(30, 20)))
    assert (shown.format, shown.size) == ("JPEG", (30, 20))
