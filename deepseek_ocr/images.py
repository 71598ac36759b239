"""Turns a picture into the uint8 views that the encoder reads.

This runs before the engine, in the caller's threads: torch's resize releases the GIL and is several times faster than
Pillow's, with practically equal pixels. Values stay uint8 until they are on the encoder's device (see `normalize`),
which halves the number of bytes that are sent to the engine.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate

from deepseek_ocr.modes import CropGrid, ResolutionMode

warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)

PADDING_GREY = 127
"""Grey value of the border in a global view that the picture does not fill."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture as it is given to the engine."""

    global_view: torch.Tensor
    """uint8 [base_size, base_size, 3]"""
    tiles: torch.Tensor
    """uint8 [grid.tiles, image_size, image_size, 3], row by row; [0, 0, 0, 3] if there are no tiles"""
    grid: CropGrid
    """How the tiles are arranged."""
    num_tokens: int
    """Number of embeddings that the encoder makes of the picture, and of its placeholders in the prompt."""

    @property
    def nbytes(self) -> int:
        """Size of all views in bytes."""
        return self.global_view.nbytes + self.tiles.nbytes


def prepare_image(picture: Image.Image | npt.NDArray[np.uint8], mode: ResolutionMode) -> PreparedImage:
    """Resize a picture and cut it into views.

    Args:
        picture: An upright picture: RGB values, [height, width, 3], or a Pillow image, which is converted to RGB.
        mode: View sizes and cropping.

    Returns:
        The global view and, if `mode` crops this picture, its tiles: the whole picture is resized to the grid without
        keeping its aspect ratio, and cut row by row.
    """
    if isinstance(picture, Image.Image) and picture.mode != "RGB":
        picture = picture.convert("RGB")
    # Not np.array, whose additional copy takes longer than the resize. Nothing here writes to the picture.
    pixels = torch.from_numpy(np.asarray(picture))
    height, width = pixels.shape[:2]
    grid = mode.crop_grid(width, height)
    if mode.squashes:
        pixels = _resize(pixels, width=mode.image_size, height=mode.image_size)
    return PreparedImage(
        global_view=_fit(pixels, mode.base_size),
        tiles=_cut(pixels, grid, mode.image_size),
        grid=grid,
        num_tokens=mode.vision_tokens(grid),
    )


def normalize(views: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert uint8 views [B, H, W, 3] to pixels of `dtype`, [B, 3, H, W], in [-1, 1].

    Runs on the device of `views`.
    """
    return (views.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(dtype)


def _fit(picture: torch.Tensor, side: int) -> torch.Tensor:
    """Fit a picture [H, W, 3] into a grey square of `side` pixels, centred, keeping its aspect ratio."""
    height, width = picture.shape[:2]
    if width > height:
        new_width, new_height = side, max(1, round(height / width * side))
    else:
        new_width, new_height = max(1, round(width / height * side)), side
    resized = _resize(picture, width=new_width, height=new_height)
    if new_width == new_height:
        return resized
    view = torch.full((side, side, 3), PADDING_GREY, dtype=torch.uint8)
    left, top = round((side - new_width) * 0.5), round((side - new_height) * 0.5)
    view[top : top + new_height, left : left + new_width] = resized
    return view


def _cut(picture: torch.Tensor, grid: CropGrid, size: int) -> torch.Tensor:
    """Resize a picture [H, W, 3] to the grid and return its tiles, [grid.tiles, size, size, 3]."""
    if not grid.tiles:
        return torch.empty((0, 0, 0, 3), dtype=torch.uint8)
    resized = _resize(picture, width=size * grid.wide, height=size * grid.tall)
    rows = resized.view(grid.tall, size, grid.wide, size, 3).transpose(1, 2)
    return rows.reshape(grid.tiles, size, size, 3)


def _resize(picture: torch.Tensor, *, width: int, height: int) -> torch.Tensor:
    """Resize uint8 [H, W, 3] to contiguous uint8 [height, width, 3], bicubic with antialiasing."""
    if picture.shape[:2] == (height, width):
        return picture
    # The batch dimension is added before the permutation: torch recognises channels-last images by the strides of the
    # batch, and converts others to planes, which takes two to three times as long for the same pixels.
    planes = picture[None].permute(0, 3, 1, 2)
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous()
