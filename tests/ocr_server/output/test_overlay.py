"""Blocks drawn on the page, and pages combined into a PDF."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pypdfium2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.output.blocks import Block, PixelBox
from ocr_server.output.overlay import PdfOfPictures, colour, draw, line_width, to_jpeg
from tests.ocr_server.conftest import examples

PAPER = (200, 210, 220)


def block(label: str, *boxes: PixelBox) -> Block:
    return Block(label, "", boxes, (), 0, 1)


class TestDraw:
    def test_outline_fill_and_nothing_else(self) -> None:
        page = Image.new("RGB", (1000, 1000), PAPER)
        drawn = np.asarray(draw(page, [block("title", (300, 400, 600, 700))]))
        line = line_width(page.size)
        assert line == 2
        box = drawn[400:700, 300:600]
        inside = box[line:-line, line:-line]
        tint = inside[0, 0]
        assert (inside == tint).all()
        assert not (tint == PAPER).all()
        assert np.abs(tint.astype(int) - PAPER).max() < 60  # the page shows through
        edge = np.ones(box.shape[:2], dtype=bool)
        edge[line:-line, line:-line] = False
        assert (box[edge] == colour("title")).all()
        # Outside there is the tag, above the box, and the page as it was.
        tag = (drawn[:400] != PAPER).any(axis=2)
        rows, columns = np.flatnonzero(tag.any(axis=1)), np.flatnonzero(tag.any(axis=0))
        assert (rows.max(), columns.min()) == (399, 300)
        assert tag[rows.min() :, 300 : columns.max() + 1].all()
        assert 10 <= len(rows) <= 30
        assert 30 <= len(columns) <= 120
        drawn = drawn.copy()
        drawn[rows.min() : 400, 300 : columns.max() + 1] = PAPER
        drawn[400:700, 300:600] = PAPER
        assert (drawn == PAPER).all()

    def test_a_tag_at_the_top_goes_into_the_box(self) -> None:
        page = Image.new("RGB", (1000, 1000), PAPER)
        drawn = draw(page, [block("title", (0, 0, 600, 700))])
        assert drawn.getpixel((3, 3)) == colour("title")
        assert (np.asarray(drawn)[700:] == PAPER).all()

    def test_the_tag_has_number_and_label(self) -> None:
        page = Image.new("RGB", (400, 200), "white")
        box = (100, 100, 300, 150)
        first = draw(page, [block("title", box)])
        second = draw(page, [block("title"), block("title", box)])
        other = draw(page, [block("table", box)])
        assert first.tobytes() != second.tobytes()
        same_colour = np.asarray(first) == np.asarray(second)
        assert same_colour[100:150].all()
        assert first.tobytes() != other.tobytes()
        assert draw(page, [block("title")]).tobytes() == page.tobytes()

    def test_the_original_is_not_changed(self) -> None:
        page = Image.new("RGB", (50, 50), PAPER)
        draw(page, [block("title", (5, 5, 40, 40))])
        assert (np.asarray(page) == PAPER).all()

    def test_overlapping_fills_stay_translucent(self) -> None:
        page = Image.new("RGB", (1000, 1000), PAPER)
        once, often = (draw(page, [block("text", *[(300, 300, 700, 700)] * n)]) for n in (1, 50))
        assert once.tobytes() == often.tobytes()

    def test_every_label_has_its_colour(self) -> None:
        colours = {colour(label) for label in DEEPSEEK_OCR.labels}
        assert len(colours) == len(DEEPSEEK_OCR.labels)
        assert colour("anything") == colour("anything")

    @pytest.mark.parametrize("label", [*DEEPSEEK_OCR.labels, "anything", "", "字"])
    def test_white_is_legible_on_it(self, label: str) -> None:
        linear = [(value / 255 / 12.92, ((value / 255 + 0.055) / 1.055) ** 2.4)[value > 10] for value in colour(label)]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) > 3  # WCAG 2.1, 1.4.3: large text

    @pytest.mark.parametrize(("size", "line"), [((80, 60), 1), ((1240, 1754), 3), ((6000, 9000), 15)])
    def test_lines_grow_with_the_page(self, size: tuple[int, int], line: int) -> None:
        assert line_width(size) == line

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
    def test_other_modes(self, mode: str) -> None:
        assert draw(Image.new(mode, (30, 20)), [block("text", (1, 1, 9, 9))]).mode == "RGB"

    @given(
        size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        boxes=st.lists(st.tuples(*[st.integers(-20, 80)] * 4), max_size=4),
        label=st.text(max_size=5),
    )
    @examples(200)
    def test_any_boxes(self, size: tuple[int, int], boxes: list[PixelBox], label: str) -> None:
        drawn = draw(Image.new("RGB", size, PAPER), [block(label, *boxes)])
        assert drawn.size == size
        assert (drawn.tobytes() != bytes(PAPER) * (size[0] * size[1])) == bool(boxes)


def pdf_of(pages: Sequence[Image.Image], dpi: float) -> bytes:
    file = io.BytesIO()
    pdf = PdfOfPictures(file)
    for page in pages:
        pdf.add(to_jpeg(page), width=page.width / dpi * 72, height=page.height / dpi * 72)
    pdf.end()
    return file.getvalue()


class TestPdf:
    def test_pages_and_sizes(self) -> None:
        pages = [Image.new("RGB", (1240, 1754), "red"), Image.new("RGB", (333, 100)), Image.new("RGB", (1, 1))]
        with pypdfium2.PdfDocument(pdf_of(pages, 150)) as pdf:
            assert len(pdf) == 3
            sizes = [pdf.get_page_size(number) for number in range(3)]
            red = pdf[0].render(scale=0.1).to_pil()
        assert sizes == [pytest.approx((page.width * 0.48, page.height * 0.48), abs=1e-3) for page in pages]
        for corner in ((0, 0), (red.width - 2, red.height - 2)):
            assert red.convert("RGB").getpixel(corner) == pytest.approx((254, 0, 0), abs=3)

    def test_pictures_stand_upright(self) -> None:
        page = Image.new("RGB", (100, 200), "white")
        page.paste("blue", (0, 0, 50, 100))
        with pypdfium2.PdfDocument(pdf_of([page], 72)) as pdf:
            shown = pdf[0].render().to_pil().convert("RGB")
        assert shown.size == (100, 200)
        assert shown.getpixel((20, 50)) == pytest.approx((0, 0, 254), abs=3)
        assert all(shown.getpixel(at) == (255, 255, 255) for at in ((80, 50), (20, 150), (80, 150)))

    def test_a_page_longer_than_jpeg_can_be(self) -> None:
        with pypdfium2.PdfDocument(pdf_of([Image.new("RGB", (70_000, 2))], 720)) as pdf:
            width, height = pdf.get_page_size(0)
        assert (width, height) == pytest.approx((7_000, 0.2), abs=1e-3)

    def test_no_pages(self) -> None:
        with pytest.raises(ValueError, match="at least one page"):
            pdf_of([], 144)

    @pytest.mark.parametrize("side", [0, -1, float("nan")])
    def test_invalid_sizes(self, side: float) -> None:
        with pytest.raises(ValueError, match="needs an area"):
            PdfOfPictures(io.BytesIO()).add(b"", width=side, height=1)
