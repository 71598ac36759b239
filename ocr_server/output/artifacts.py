"""What is made of a page's answer while its picture is at hand: blocks, figures, the overlay."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field

from PIL import Image

from ocr_server.intake.source_page import SourcePage
from ocr_server.output.blocks import Block, PixelBox, blocks
from ocr_server.output.confidence import TokenSpan, token_spans
from ocr_server.output.figures import crop, figure_boxes, figure_name
from ocr_server.output.overlay import draw, to_jpeg
from ocr_server.reading.page import PageReading

MOST_FIGURES = 100
"""Figures of a page that are cut out: a model that runs wild may name hundreds, each of them the whole page."""


@dataclass(frozen=True)
class Figure:
    name: str
    box: PixelBox
    """In pixels of the page."""
    jpeg: bytes | None
    """None if it was not asked for, or the box is empty."""

    @property
    def size(self) -> tuple[int, int]:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True)
class Product:
    blocks: list[Block] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    spans: list[TokenSpan] = field(default_factory=list)
    """Empty without logprobs."""
    overlay: bytes | None = None
    """The page with its blocks drawn on it, if it was asked for: a PNG, or of a document's page a JPEG."""


def product_of(reading: PageReading) -> Product:
    """What was made of it; of a page that could not be read, nothing."""
    return reading.product if isinstance(reading.product, Product) else Product()


async def page_picture(source: SourcePage) -> bytes:
    """The page as a JPEG, to be shown."""
    # Not `source.image`: that copy would be kept for as long as the page is being read.
    return await asyncio.to_thread(lambda: to_jpeg(Image.fromarray(source.pixels)))


@dataclass(frozen=True)
class Wanted:
    """What a request wants of each page; called by the reader when a page is done."""

    figures: bool = False
    overlay: bool = False
    of_document: bool = False
    """Whether overlays are pages of a document."""

    async def __call__(self, reading: PageReading, source: SourcePage) -> Product:
        return await asyncio.to_thread(self.make, reading, source)

    def make(self, reading: PageReading, source: SourcePage) -> Product:
        answer = reading.text()
        found = blocks(answer, *source.size)
        most = MOST_FIGURES if self.figures else 0
        figures = [
            Figure(
                figure_name(reading.number + 1, number),
                box,
                to_jpeg(figure) if number <= most and (figure := crop(source.image, box)) else None,
            )
            for number, box in enumerate(figure_boxes(found), start=1)
        ]
        return Product(
            blocks=found,
            figures=figures,
            spans=token_spans(answer, reading.steps()),
            overlay=self._overlay(source, found) if self.overlay else None,
        )

    def _overlay(self, source: SourcePage, found: list[Block]) -> bytes:
        drawn = draw(source.image, found)
        if self.of_document:
            return to_jpeg(drawn)
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()
