"""Turns the views of pictures into the embeddings that replace their placeholders in the decoder's prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from deepseek_ocr.encoder.clip import Clip
from deepseek_ocr.encoder.config import EncoderConfig
from deepseek_ocr.encoder.sam import Sam
from deepseek_ocr.images import normalize
from deepseek_ocr.modes import CropGrid

PIXELS_PER_PASS = 4 * 1024 * 1024
"""Maximum number of pixels that are encoded together.

This limits the memory of SAM's attention bias (about 0.4 GB for each view of 1024 × 1024 pixels in bf16), and is enough
to keep an accelerator busy.
"""


class Views(NamedTuple):
    """The views of a picture, uint8, on the encoder's device."""

    global_view: torch.Tensor
    """[base_size, base_size, 3]"""
    tiles: torch.Tensor
    """[grid.tiles, image_size, image_size, 3]"""
    grid: CropGrid


class DeepEncoder(nn.Module):
    """SAM, CLIP and the projector."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.sam_model = Sam(config.sam)
        self.vision_model = Clip(config.clip)
        self.projector = Projector(config.projector_input, config.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))
        self.view_seperator = nn.Parameter(torch.zeros(config.hidden_size))
        self.pixels_per_pass = PIXELS_PER_PASS

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised pixels [B, 3, size, size] as [B, n·n, hidden], n = size / 64, row by row."""
        return self.project(self.sam_model(pixels))

    def project(self, sam: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, n·n, hidden] for SAM's output [B, channels, n, n].

        CLIP reads the output; the projector gets CLIP's and SAM's outputs together.
        """
        clip = self.vision_model(sam)
        features = torch.cat([clip[:, 1:], sam.flatten(2).transpose(1, 2)], dim=-1)
        out: torch.Tensor = self.projector(features)
        return out

    def embed(self, pictures: Sequence[Views]) -> list[torch.Tensor]:
        """Return the embeddings of each picture, [tokens, hidden].

        All views with the same size are encoded together, whichever picture they belong to and whether they are tiles
        or global views.
        """
        return self.assemble_all(
            pictures, {size: self._encode(views) for size, views in views_by_size(pictures).items()}
        )

    def assemble_all(
        self, pictures: Sequence[Views], encoded: Mapping[int, Iterator[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return the embeddings of each picture, [tokens, hidden], from its encoded views.

        Args:
            pictures: The views; only their sizes are used.
            encoded: Size → the encoded views of that size, [n·n, hidden] each, in the order of `views_by_size`.
        """
        embeddings = []
        for picture in pictures:
            (global_view,) = next_views(encoded[picture.global_view.shape[0]], 1)
            tiles = next_views(encoded[picture.tiles.shape[1]], picture.grid.tiles) if picture.grid.tiles else None
            embeddings.append(self.assemble(global_view, tiles, picture.grid))
        return embeddings

    def assemble(self, global_view: torch.Tensor, tiles: Sequence[torch.Tensor] | None, grid: CropGrid) -> torch.Tensor:
        """Put the encoded views of a picture in the decoder's order.

        Args:
            global_view: [qb·qb, hidden]
            tiles: grid.tiles × [q·q, hidden], row by row, or None.
            grid: How the tiles are arranged.

        Returns:
            `[tiles, global view, view_seperator]`, each grid with a newline after every row; the
            tiles form one grid of (tall·q) × (wide·q).
        """
        parts = []
        if tiles:
            side = _side(tiles[0])
            stacked = torch.stack(list(tiles)).view(grid.tall, grid.wide, side, side, -1)
            parts.append(self._with_newlines(stacked.transpose(1, 2).reshape(grid.tall * side, grid.wide * side, -1)))
        side = _side(global_view)
        parts.append(self._with_newlines(global_view.view(side, side, -1)))
        parts.append(self.view_seperator[None])
        return torch.cat(parts)

    def _encode(self, views: torch.Tensor) -> Iterator[torch.Tensor]:
        """Encode uint8 views [B, size, size, 3], and yield [n·n, hidden] for each."""
        size = views.shape[1]
        for chunk in views.split(max(1, self.pixels_per_pass // (size * size))):
            yield from self(normalize(chunk, self.image_newline.dtype))

    def _with_newlines(self, rows: torch.Tensor) -> torch.Tensor:
        """Add a newline to the end of each row: [rows, columns, hidden] → [rows · (columns + 1), hidden]."""
        newline = self.image_newline.expand(rows.shape[0], 1, -1)
        return torch.cat([rows, newline], dim=1).flatten(0, 1)


class Projector(nn.Module):
    """Maps the encoder's features to the decoder's width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def views_by_size(pictures: Sequence[Views]) -> dict[int, torch.Tensor]:
    """Return size → all views of that size, uint8 [B, size, size, 3]. A picture's global view precedes its tiles."""
    by_size: dict[int, list[torch.Tensor]] = defaultdict(list)
    for picture in pictures:
        by_size[picture.global_view.shape[0]].append(picture.global_view[None])
        if picture.grid.tiles:
            by_size[picture.tiles.shape[1]].append(picture.tiles)
    return {size: torch.cat(views) for size, views in by_size.items()}


def next_views(views: Iterator[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Return the next `count` views."""
    return [next(views) for _ in range(count)]


def _side(view: torch.Tensor) -> int:
    return int(view.shape[0] ** 0.5 + 0.5)
