"""Figures cut out of the page."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ocr_server.intake.source_page import Rgb
from ocr_server.output.blocks import blocks
from ocr_server.output.figures import crop, figure_boxes, figure_name
from tests.ocr_server.output.answers import PAGE, marker


def checked(width: int, height: int) -> Rgb:
    """A picture in which the colour of every pixel is its position."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 7) for y in range(height) for x in range(width)])
    return np.asarray(image)


def test_a_crop_is_pixel_for_pixel() -> None:
    cropped = crop(checked(40, 30), (10, 5, 13, 7))
    assert cropped is not None
    assert (cropped.size, cropped.mode) == ((3, 2), "RGB")
    assert list(cropped.tobytes()) == [value for y in (5, 6) for x in (10, 11, 12) for value in (x, y, 7)]


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (40, 30, 40, 30), (50, 5, 60, 9), (9, 9, 5, 5)])
def test_an_empty_box(box: tuple[int, int, int, int]) -> None:
    assert crop(checked(40, 30), box) is None


def test_a_box_beyond_the_page_is_cut_at_its_edge() -> None:
    cropped = crop(checked(40, 30), (-5, 20, 99, 99))
    assert cropped is not None
    assert cropped.size == (40, 10)
    assert cropped.getpixel((0, 0)) == (0, 20, 7)


def test_names() -> None:
    assert (figure_name(1, 1), figure_name(12, 3)) == ("page-1-figure-1.jpeg", "page-12-figure-3.jpeg")


def test_only_figures_have_boxes_and_they_are_in_order() -> None:
    answer = PAGE + marker("image", (0, 0, 10, 10), (20, 20, 30, 30)) + marker("Image", (1, 1, 2, 2))
    assert figure_boxes(blocks(answer, 999, 999)) == [(80, 320, 480, 600), (0, 0, 10, 10), (20, 20, 30, 30)]
