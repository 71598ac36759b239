"""The positions of text on a page, as read by the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from live_requests import RECEIPT, ROOT, SIGN, truth
from live_server import WAIT_SECONDS
from PIL import Image

pytestmark = pytest.mark.live

MARKET = ROOT / "examples" / "market.png"
LINES = "<|grounding|>OCR this image."
Box = tuple[int, int, int, int]


def line_boxes(picture: Path) -> list[Box]:
    """Return the boxes of the printed lines, determined from the dark pixels."""
    ink = np.asarray(Image.open(picture).convert("L")) < 128
    rows = np.flatnonzero(ink.any(axis=1))
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1)
    found = []
    for line in lines:
        columns = np.flatnonzero(ink[line[0] : line[-1] + 1].any(axis=0))
        found.append((int(columns[0]), int(line[0]), int(columns[-1]) + 1, int(line[-1]) + 1))
    return found


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def read(http: httpx.Client, picture: Path, prompt: str) -> list[tuple[str, Box]]:
    files = {"file": (picture.name, picture.read_bytes())}
    answer = http.post("/v1/ocr", files=files, data={"prompt": prompt}, timeout=WAIT_SECONDS).raise_for_status().json()
    sides = "top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y"
    return [(block["content"], tuple(block[side] for side in sides)) for block in answer["pages"][0]["blocks"]]


def test_every_line_has_a_matching_box(http: httpx.Client) -> None:
    found = read(http, MARKET, LINES)
    assert [text for text, _ in found] == truth(MARKET).split("\n")
    expected = line_boxes(MARKET)
    assert len(expected) == len(found)
    overlaps = [overlap(box, line) for (_, box), line in zip(found, expected, strict=True)]
    assert sum(overlaps) / len(overlaps) > 0.6, overlaps


def test_boxes_start_where_the_lines_start(http: httpx.Client) -> None:
    picture = Image.open(SIGN).convert("RGB")
    found = read(http, SIGN, LINES)
    assert [text for text, _ in found] == truth(SIGN).split("\n")
    expected = line_boxes(SIGN)
    line_distance = expected[1][1] - expected[0][1]
    for (_, box), line in zip(found, expected, strict=True):
        assert abs(box[0] - line[0]) < picture.width * 0.03
        assert abs(box[1] - line[1]) < line_distance / 2, "the box should not be closer to another line"


@pytest.mark.parametrize("picture", [RECEIPT, MARKET], ids=lambda path: path.stem)
def test_plain_text_has_no_positions(http: httpx.Client, picture: Path) -> None:
    (block,) = read(http, picture, "Free OCR.")
    assert block[0] == truth(picture)
