"""The figures of a page: where they are, what they are called, and the pictures themselves."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.output.blocks import Block, PixelBox


def figure_boxes(blocks: Iterable[Block], family: Family = DEEPSEEK_OCR) -> list[PixelBox]:
    """The boxes of all figures, in the order in which `markdown.to_markdown` takes their names."""
    return [box for block in blocks if block.label == family.figure_label for box in block.boxes]


def figure_name(page: int, number: int) -> str:
    """The file name of a page's figure; both count from 1, pages within the whole document."""
    return f"page-{page}-figure-{number}.jpeg"


def crop(image: Image.Image, box: PixelBox) -> Image.Image | None:
    """The part of the page within the box, pixel for pixel; None if there is nothing in it."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        return None
    return image.crop((left, top, right, bottom))
