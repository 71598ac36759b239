"""The figures of a page: their boxes, their file names, and the pictures themselves."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.intake.source_page import Rgb
from ocr_server.output.blocks import Block, PixelBox


def figure_boxes(blocks: Iterable[Block], family: Family = DEEPSEEK_OCR) -> list[PixelBox]:
    """Return the boxes of all figures, in the order in which `markdown.to_markdown` uses their names."""
    return [box for block in blocks if block.label == family.figure_label for box in block.boxes]


def figure_name(page: int, number: int) -> str:
    """Return the file name of a figure.

    Args:
        page: Number of the page in the document, counted from 1.
        number: Number of the figure on the page, counted from 1.
    """
    return f"page-{page}-figure-{number}.jpeg"


def crop(pixels: Rgb, box: PixelBox) -> Image.Image | None:
    """Cut a box out of the page, without resampling. Return None if the box is empty or outside the page."""
    height, width, _ = pixels.shape
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], width), min(box[3], height)
    if left >= right or top >= bottom:
        return None
    return Image.fromarray(pixels[top:bottom, left:right])
