"""Resolution modes, tile grids and token counts. Arithmetic only, without torch and vLLM.

The decoder gets a picture as a *global view* (the whole picture in a square of `base_size` pixels) and, in cropping
modes, a grid of *tiles* (squares of `image_size` pixels). Sources: the DeepSeek-OCR paper
(arXiv 2510.18234) and the configuration of `deepseek-ai/DeepSeek-OCR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

PATCH_SIZE: Final = 16
"""Side of a SAM patch, in pixels."""
DOWNSAMPLE: Final = 4
"""Patches along one side of a vision token, from SAM's two convolutions with stride 2."""

MIN_VIEW_SIZE: Final = 64
MAX_VIEW_SIZE: Final = 1280
"""Bounds of `base_size` and `image_size`, in pixels. 1280 is the largest size the model was trained with."""
MAX_TILES: Final = 9
"""Maximum number of tiles of a picture. The model's authors advise against more."""


class CropGrid(NamedTuple):
    """Number of tiles across and down; (1, 1) means that there are no tiles."""

    wide: int
    tall: int

    @property
    def tiles(self) -> int:
        """Number of tiles; 0 for (1, 1), where there is only the global view."""
        return 0 if self == NO_TILES else self.wide * self.tall


NO_TILES: Final = CropGrid(1, 1)


@dataclass(frozen=True)
class ResolutionMode:
    """How a picture is turned into views.

    Raises:
        ValueError: A value is not allowed. The message starts with the name of the field.
    """

    base_size: int = 1024
    """Side of the global view, in pixels; a multiple of 16."""
    image_size: int = 640
    """Side of a tile, in pixels; a multiple of 16. Pictures that are no larger than this are not cropped."""
    crop_mode: bool = True
    """Whether large pictures are cut into tiles, in addition to the global view."""
    min_crops: int = 2
    """Minimum number of tiles of a picture that is cropped."""
    max_crops: int = 6
    """Maximum number of tiles of a picture."""

    def __post_init__(self) -> None:
        for name in ("base_size", "image_size"):
            size = _integer(name, getattr(self, name))
            if not MIN_VIEW_SIZE <= size <= MAX_VIEW_SIZE or size % PATCH_SIZE:
                raise ValueError(
                    f"{name} must be a multiple of {PATCH_SIZE} from {MIN_VIEW_SIZE} to {MAX_VIEW_SIZE}, not {size}"
                )
        if not isinstance(self.crop_mode, bool):
            raise ValueError(f"crop_mode must be true or false, not {self.crop_mode!r}")
        for name in ("min_crops", "max_crops"):
            count = _integer(name, getattr(self, name))
            if not 1 <= count <= MAX_TILES:
                raise ValueError(f"{name} must be from 1 to {MAX_TILES}, not {count}")
        if self.min_crops > self.max_crops:
            raise ValueError(f"min_crops must not exceed max_crops ({self.max_crops}), not {self.min_crops}")

    @property
    def squashes(self) -> bool:
        """Whether the picture is resized to a square without keeping its aspect ratio, instead of being padded.

        The original implementation does so in modes without cropping with sizes up to 640 (tiny and small).
        """
        return not self.crop_mode and self.image_size <= 640

    def crop_grid(self, width: int, height: int) -> CropGrid:
        """Return the grid for a picture of `width` × `height` pixels.

        This is the grid whose aspect ratio is nearest to the picture's. Of grids that are equally near, in order of the
        number of tiles, a later one replaces an earlier one if the picture has more than half as many pixels as it.
        """
        if not self.crop_mode or (width <= self.image_size and height <= self.image_size):
            return NO_TILES
        aspect = width / height
        best, least = NO_TILES, float("inf")
        for grid in _grids(self.min_crops, self.max_crops):
            difference = abs(aspect - grid.wide / grid.tall)
            if difference < least:
                best, least = grid, difference
            elif difference == least and width * height > 0.5 * self.image_size**2 * grid.wide * grid.tall:
                best = grid
        return best

    def vision_tokens(self, grid: CropGrid) -> int:
        """Return the number of embeddings (and of placeholders in the prompt) of a picture with this grid."""
        return view_tokens(self.base_size, self.image_size, grid)

    def max_vision_tokens(self) -> int:
        """Return the largest number of embeddings that a picture can have in this mode."""
        return self.vision_tokens(self.largest_grid())

    def largest_grid(self) -> CropGrid:
        """Return the grid with the most tokens in this mode."""
        if not self.crop_mode:
            return NO_TILES
        return max(_grids(self.min_crops, self.max_crops), key=self.vision_tokens)

    def with_changes(self, changes: Mapping[str, Any]) -> ResolutionMode:
        """Return this mode with some fields replaced.

        Raises:
            ValueError: A field does not exist, or its value is not allowed. The message starts with its name.
        """
        names = {field.name for field in fields(self)}
        for name in changes:
            if name not in names:
                raise ValueError(f"{name} is not a field of a resolution mode")
        return replace(self, **changes)


def view_tokens(base_size: int, image_size: int, grid: CropGrid) -> int:
    """Return the number of embeddings of a picture: both grids with a newline after each row, and the separator.

    `N = qb (qb + 1) + 1 + [tall q (wide q + 1) if there are tiles]`, where qb and q are the numbers of vision tokens
    along one side of the global view and of a tile.
    """
    qb, q = view_side(base_size), view_side(image_size)
    tiles = grid.tall * q * (grid.wide * q + 1) if grid.tiles else 0
    return tiles + qb * (qb + 1) + 1


def view_side(size: int) -> int:
    """Return the number of vision tokens along one side of a view of `size` pixels: ceil((size // 16) / 4)."""
    return -(-(size // PATCH_SIZE) // DOWNSAMPLE)


@lru_cache(maxsize=8)
def most_expensive_mode(max_tokens: int) -> ResolutionMode:
    """Return the mode with the most vision tokens that fit in `max_tokens`.

    A request may ask for every allowed mode that fits in the context, so the engine has to be profiled with this one.

    Raises:
        ValueError: Not even the smallest mode fits.
    """
    sizes = range(
        MIN_VIEW_SIZE, MAX_VIEW_SIZE + 1, PATCH_SIZE * DOWNSAMPLE
    )  # one size for each number of tokens along a side
    candidates = [ResolutionMode(base_size=base, crop_mode=False) for base in sizes] + [
        ResolutionMode(base_size=base, image_size=size, max_crops=crops)
        for base in sizes
        for size in sizes
        for crops in range(2, MAX_TILES + 1)
    ]
    fitting = [mode for mode in candidates if mode.max_vision_tokens() <= max_tokens]
    if not fitting:
        raise ValueError(f"a context of {max_tokens} tokens is too short for any picture")
    return max(fitting, key=ResolutionMode.max_vision_tokens)


@lru_cache(maxsize=64)
def _grids(fewest: int, most: int) -> tuple[CropGrid, ...]:
    """Return all grids of `fewest` to `most` tiles, sorted by number of tiles, and then from tall to wide."""
    grids = [
        CropGrid(wide, tall)
        for wide in range(1, most + 1)
        for tall in range(1, most + 1)
        if fewest <= wide * tall <= most
    ]
    return tuple(sorted(grids, key=lambda grid: grid.wide * grid.tall))


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    return value


MODES: Final[Mapping[str, ResolutionMode]] = {
    "tiny": ResolutionMode(base_size=512, image_size=512, crop_mode=False),
    "small": ResolutionMode(base_size=640, image_size=640, crop_mode=False),
    "base": ResolutionMode(base_size=1024, image_size=1024, crop_mode=False),
    "large": ResolutionMode(base_size=1280, image_size=1280, crop_mode=False),
    "gundam": ResolutionMode(base_size=1024, image_size=640, crop_mode=True),
    "gundam-m": ResolutionMode(base_size=1280, image_size=1024, crop_mode=True),
}
"""The published modes of DeepSeek-OCR. The default is gundam."""
