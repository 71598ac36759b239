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
    pixels: Rgb
    """Upright."""
    dpi: float | None
    """Pixels per inch that it was rendered at, which are as asked, or fewer where the page would have been too large;
    None for pictures."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width, _ = self.pixels.shape
        return width, height

    @cached_property
    def image(self) -> Image.Image:
        """A copy, for those who draw on it or cut from it."""
        return Image.fromarray(self.pixels)
