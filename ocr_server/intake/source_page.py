"""A page as it was decoded or rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ocr_server.memory import Reservation

DECODING_BYTES = 16
"""Memory that decoding takes at its peak, in bytes per pixel, in the worker process and here: Pillow's picture in its
own mode and in RGB, the rows, and the copies that both processes have. Measured: 10 to 21, most often 10 or 13."""
KEPT_PIXELS = 9_000_000
"""Size in pixels up to which a decoded picture is kept until it is needed again, if there is memory for it: a page in
A4 at 300 dpi. Larger ones are decoded again."""

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
    memory: Reservation | None = None
    """What the page takes of the memory budget: at first what decoding took."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width, _ = self.pixels.shape
        return width, height

    @property
    def image(self) -> Image.Image:
        """The page as a Pillow image: a new copy each time, which may be drawn on."""
        return Image.fromarray(self.pixels)

    def close(self) -> None:
        """Give back the memory. Idempotent."""
        if self.memory is not None:
            self.memory.close()
