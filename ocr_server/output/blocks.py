"""The model's answer → the blocks of the page, in reading order, with their places on it.

Two kinds of answer have markers (see `grounding`). Converting a document, the model writes a block's label in the
marker and its text behind it. Asked for the text alone, or to locate something, it writes the text itself in the
marker, and nothing behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.output.grounding import TOKENS, Box, Located, parse

PixelBox = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the page; right and bottom are exclusive, as in Pillow."""

_LIKE_A_LABEL = re.compile("[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the page that the model read as one."""

    label: str
    text: str
    """Without white space at its ends; a figure has none."""
    boxes: tuple[PixelBox, ...]
    """Where it is on the page; empty if the model did not say."""
    model_boxes: tuple[Box, ...]
    """The same as the model said it."""
    start: int
    """Where it begins in the answer, in characters: at its marker, if it has one."""
    end: int
    """Where the next block begins, or the answer ends."""


def blocks(answer: str, width: int, height: int, *, family: Family = DEEPSEEK_OCR) -> list[Block]:
    """The blocks of an answer about a page of `width` by `height` pixels, in reading order.

    Nothing visible is lost: what has no marker is of label "text", without boxes.
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
    """Whether a marker's text is the label of what follows it, and not itself text on the page.

    `following` is what stands between the marker and the next one. Where that begins like a marker, the answer
    was cut off within one, and nothing follows.
    """
    text = following.lstrip()
    return ref in family.labels or (bool(text) and not text.startswith(TOKENS[0]) and may_be_label(ref))


def may_be_label(ref: str) -> bool:
    """Whether `ref` looks like the model's labels."""
    return _LIKE_A_LABEL.fullmatch(ref) is not None


def pixel_box(box: Box, width: int, height: int, scale: int = DEEPSEEK_OCR.box_scale) -> PixelBox:
    """The model's box in pixels of a page, within the page and its corners in order; it may be empty.

    pixel = int(v / 999 * side), as in DeepSeek-OCR's own scripts.
    """
    left, right = sorted(_pixel(x, width, scale) for x in (box[0], box[2]))
    top, bottom = sorted(_pixel(y, height, scale) for y in (box[1], box[3]))
    return left, top, right, bottom


def _pixel(value: int, side: int, scale: int) -> int:
    return min(max(int(value / scale * side), 0), side)
