"""What is made of a page's answer while its picture is at hand: blocks, figures, the overlay."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

from PIL import Image

from ocr_server.intake.document import SourcePage
from ocr_server.reading.blocks import Block, PixelBox, blocks
from ocr_server.reading.confidence import TokenSpan, token_spans
from ocr_server.reading.figures import crop, figure_boxes, figure_name
from ocr_server.reading.overlay import draw
from ocr_server.reading.page import PageReading

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Figure:
    name: str
    box: PixelBox
    """In pixels of the page."""
    jpeg: bytes | None
    """None if it was not asked for, or is empty."""


@dataclass(frozen=True)
class Product:
    blocks: list[Block]
    figures: list[Figure]
    spans: list[TokenSpan]
    """Empty without logprobs."""
    overlay: Image.Image | None


@dataclass(frozen=True)
class Wanted:
    """What a request wants of each page; called by the reader when a page is done."""

    figures: bool = False
    overlay: bool = False

    async def __call__(self, reading: PageReading, source: SourcePage) -> Product:
        return await asyncio.to_thread(self.make, reading, source)

    def make(self, reading: PageReading, source: SourcePage) -> Product:
        answer = reading.text()
        found = blocks(answer, *source.image.size)
        figures = [
            Figure(figure_name(reading.number + 1, number), box, _jpeg(source.image, box) if self.figures else None)
            for number, box in enumerate(figure_boxes(found), start=1)
        ]
        return Product(
            blocks=found,
            figures=figures,
            spans=token_spans(answer, reading.steps()),
            overlay=draw(source.image, found) if self.overlay else None,
        )


def _jpeg(image: Image.Image, box: PixelBox) -> bytes | None:
    figure = crop(image, box)
    if figure is None:
        return None
    file = io.BytesIO()
    figure.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
