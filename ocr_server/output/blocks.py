"""Parses the model's answer into the blocks of the page, in reading order, with their bounding boxes.

Markers (see `grounding`) occur in two kinds of answers. When the model converts a document, a marker contains the label
of a block, and the text of the block follows the marker. When the model is asked for the text of lines, or to locate
something, the marker contains the text itself, and nothing follows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.output.grounding import TOKENS, Box, Located, parse

PixelBox = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the page. right and bottom are exclusive, as in Pillow."""

_LIKE_A_LABEL = re.compile("[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the page, such as a paragraph, a table or a figure."""

    label: str
    text: str
    """Text without leading and trailing white space. Empty for a figure."""
    boxes: tuple[PixelBox, ...]
    """Bounding boxes on the page. Empty if the model gave none."""
    model_boxes: tuple[Box, ...]
    """The same boxes in the model's own coordinates."""
    start: int
    """Index of the first character of the block in the answer, including its marker."""
    end: int
    """Index at which the next block begins or the answer ends."""


def blocks(answer: str, width: int, height: int, *, family: Family = DEEPSEEK_OCR) -> list[Block]:
    """Parse an answer into blocks, in reading order. All visible text is kept.

    Args:
        answer: The model's answer.
        width: Width of the page in pixels.
        height: Height of the page in pixels.
        family: The family of the model, which defines the labels and the scale of the boxes.

    Returns:
        The blocks. Text without a marker becomes a block with the label "text" and no boxes.
    """
    sections: list[tuple[Located | None, str]] = [(None, "")]
    for event in parse(answer):
        if isinstance(event, str):
            sections[-1] = (sections[-1][0], event)
        else:
            sections.append((event, ""))

    found: list[Block] = []
    end = 0
    for marker, following in sections:
        text = following.strip()
        start, behind = end, end + (len(marker.raw) if marker else 0)
        end = behind + len(following)
        if marker:
            boxes = tuple(pixel_box(box, width, height, family.box_scale) for box in marker.boxes)
            if is_label(marker.ref, following, family):
                found.append(Block(marker.ref, text, boxes, marker.boxes, start, end))
                continue
            found.append(Block("text", marker.ref.strip(), boxes, marker.boxes, start, behind if text else end))
        if text:
            found.append(Block("text", text, (), (), behind, end))
    return found


def is_label(ref: str, following: str, family: Family = DEEPSEEK_OCR) -> bool:
    """Return whether the text in a marker is the label of the text that follows, rather than text on the page.

    Args:
        ref: The text in the marker.
        following: The text between this marker and the next one. If it begins with the start of a marker, the answer
            was cut off inside a marker, and no text follows.
        family: The family of the model, which defines the known labels.
    """
    text = following.lstrip()
    return ref in family.labels or (bool(text) and not text.startswith(TOKENS[0]) and may_be_label(ref))


def may_be_label(ref: str) -> bool:
    """Return whether `ref` has the form of a label: lower-case letters and underscores."""
    return _LIKE_A_LABEL.fullmatch(ref) is not None


def pixel_box(box: Box, width: int, height: int, scale: int = DEEPSEEK_OCR.box_scale) -> PixelBox:
    """Convert a box of the model to pixels of a page.

    The corners are put in order, and the box is clipped to the page. The result may be empty.

    pixel = int(v / scale * side), as in DeepSeek-OCR's own scripts, where scale is 999.
    """
    left, right = sorted(_pixel(x, width, scale) for x in (box[0], box[2]))
    top, bottom = sorted(_pixel(y, height, scale) for y in (box[1], box[3]))
    return left, top, right, bottom


def _pixel(value: int, side: int, scale: int) -> int:
    return min(max(int(value / scale * side), 0), side)
