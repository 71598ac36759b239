"""Each output format as the text of an answer and as a file."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence

import pypdfium2
import pytest
from PIL import Image

from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.errors import ReadError
from ocr_server.output.artifacts import PageArtifacts
from ocr_server.output.formats import FILE_FORMATS, FORMATS, TEXT_FORMATS, FinishedPage, OutputFile, TextOptions
from ocr_server.output.formats.overlay import PICTURE_DPI
from ocr_server.output.overlay import to_jpeg
from ocr_server.output.tables import TableFormat
from ocr_server.reading.page import PageDelta, PageReading
from ocr_server.reading.reader import PAGE_SEPARATOR
from tests.ocr_server.output.answers import PAGE

RAW_PIECES = [PAGE[:30], PAGE[30:31], PAGE[31:]]


def written(name: str, pieces: Sequence[str], table_format: TableFormat = "html") -> str:
    """The text that a format makes of an answer in pieces."""
    make = FORMATS[name].text
    assert make is not None
    text = make(TextOptions(lambda number: f"{number}.jpeg", table_format, DEEPSEEK_OCR))
    return "".join([*map(text.feed, pieces), text.close()])


def finished(
    index: int, answer: str, *, overlay: bytes | None = None, dpi: float | None = None, failed: bool = False
) -> FinishedPage:
    """A page whose markdown is its answer in capitals."""
    width, height = Image.open(io.BytesIO(overlay)).size if overlay else (0, 0)
    reading = PageReading(
        index,
        source=0,
        number=index,
        width=width,
        height=height,
        dpi=dpi,
        deltas=[] if failed else [PageDelta(0, answer, 1, 1, finish_reason="stop")],
        error=ReadError("The page is damaged.") if failed else None,
        artifacts=None if failed else PageArtifacts(overlay=overlay),
    )
    return FinishedPage(reading, "" if failed else answer.upper())


async def file_of(name: str, *pages: FinishedPage, of_document: bool = True) -> OutputFile:
    async def all_pages() -> AsyncIterator[FinishedPage]:
        for page in pages:
            yield page

    write = FORMATS[name].file
    assert write is not None
    return await write(all_pages(), of_document)


def jpeg(width: int, height: int, colour: str) -> bytes:
    return to_jpeg(Image.new("RGB", (width, height), colour))


class TestTable:
    def test_names_are_the_keys(self) -> None:
        assert {name: each.name for name, each in FORMATS.items()} == {name: name for name in FORMATS}

    def test_which_formats_are_texts_and_which_are_files(self) -> None:
        assert TEXT_FORMATS == ("raw", "markdown", "blocks")
        assert FILE_FORMATS == ("raw", "markdown", "overlay")

    def test_every_format_can_be_written_in_some_way(self) -> None:
        assert set(FORMATS) == {*TEXT_FORMATS, *FILE_FORMATS}

    def test_the_artifacts_that_they_need(self) -> None:
        needed = {name: each.artifacts for name, each in FORMATS.items()}
        assert {name for name, artifacts in needed.items() if artifacts} == {"blocks", "overlay"}
        assert (needed["blocks"].blocks, needed["blocks"].overlay) == (True, False)
        assert needed["overlay"].overlay

    def test_log_probabilities_belong_to_raw_only(self) -> None:
        assert [name for name, each in FORMATS.items() if each.verbatim] == ["raw"]

    @pytest.mark.parametrize("name", FORMATS)
    def test_the_description_is_a_sentence(self, name: str) -> None:
        assert FORMATS[name].description[0].isupper()
        assert FORMATS[name].description.endswith(".")


class TestText:
    def test_raw_is_unchanged(self) -> None:
        assert written("raw", RAW_PIECES) == PAGE

    @pytest.mark.parametrize("name", ["markdown", "blocks"])
    def test_markdown_without_markers(self, name: str) -> None:
        text = written(name, RAW_PIECES)
        assert text.startswith("# A heading")
        assert "![](1.jpeg)" in text
        assert "<|" not in text
        assert text.endswith("<table><tr><td>a</td><td>b</td></tr></table>")

    @pytest.mark.parametrize("name", ["markdown", "blocks"])
    def test_tables_can_be_markdown(self, name: str) -> None:
        assert written(name, RAW_PIECES, "markdown").endswith("| a | b |\n| --- | --- |")


class TestFile:
    async def test_raw_has_the_answers(self) -> None:
        file = await file_of("raw", finished(0, "one"), finished(1, "", failed=True), finished(2, "three"))
        assert file == OutputFile(f"one{PAGE_SEPARATOR}{PAGE_SEPARATOR}three", "text/plain")

    async def test_markdown_has_the_markdown_of_the_pages(self) -> None:
        file = await file_of("markdown", finished(0, "one"), finished(1, "two"))
        assert file == OutputFile(f"ONE{PAGE_SEPARATOR}TWO", "text/markdown")

    async def test_the_overlay_of_a_document_is_a_pdf_without_the_pages_that_failed(self) -> None:
        red, blue = jpeg(200, 100, "red"), jpeg(50, 100, "blue")
        file = await file_of(
            "overlay",
            finished(0, "one", overlay=red, dpi=100),
            finished(1, "", failed=True),
            finished(2, "three", overlay=blue, dpi=100),
        )
        assert file.media_type == "application/pdf" == FORMATS["overlay"].media_type
        assert isinstance(file.content, io.BufferedRandom)
        with file.content, pypdfium2.PdfDocument(file.content.read()) as pdf:
            sizes = [pdf.get_page_size(number) for number in range(len(pdf))]
        assert sizes == [pytest.approx((144, 72), abs=1e-3), pytest.approx((36, 72), abs=1e-3)]

    async def test_pages_without_a_resolution_have_a_default(self) -> None:
        file = await file_of("overlay", finished(0, "one", overlay=jpeg(PICTURE_DPI, 2 * PICTURE_DPI, "red")))
        assert isinstance(file.content, io.BufferedRandom)
        with file.content, pypdfium2.PdfDocument(file.content.read()) as pdf:
            assert pdf.get_page_size(0) == pytest.approx((72, 144), abs=1e-3)

    async def test_the_overlay_of_a_picture_is_its_png(self) -> None:
        png = io.BytesIO()
        Image.new("RGB", (5, 6), "red").save(png, "PNG")
        file = await file_of("overlay", finished(0, "one", overlay=png.getvalue()), of_document=False)
        assert file == OutputFile(png.getvalue(), "image/png")
