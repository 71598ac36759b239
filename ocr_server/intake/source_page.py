"""A page as it was decoded or rendered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]
"""[height, width, 3], RGB."""


@dataclass(frozen=True, eq=False)
class SourcePage:
    """The pixels of a page."""

    pixels: Rgb
    """Upright."""
    dpi: float | None
    """Resolution in pixels per inch at which it was rendered: the requested one, or a lower one if the page would have
    been too large. None for pictures."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width, _ = self.pixels.shape
        return width, height

    @cached_property
    def image(self) -> Image.Image:
        """The page as a Pillow image; a copy, which may be drawn on."""
        return Image.fromarray(self.pixels)
