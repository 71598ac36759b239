"""Interpolates learned position tables to the size of the input, once for each size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import interpolate


class TableCache:
    """Caches the tables that are derived from a parameter, by size.

    If gradients are needed (training), nothing is cached and the cache is cleared, because the parameter changes.
    """

    def __init__(self) -> None:
        self._kept: dict[int, torch.Tensor] = {}

    def get(
        self, side: int, parameter: torch.Tensor, derive: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> torch.Tensor:
        """Return `derive(parameter, side)`, from the cache if possible."""
        if torch.is_grad_enabled() and parameter.requires_grad:
            self.clear()
            return derive(parameter, side)
        table = self._kept.get(side)
        if table is None or table.dtype != parameter.dtype or table.device != parameter.device:
            table = self._kept[side] = derive(parameter.detach(), side)
        return table

    def clear(self) -> None:
        self._kept.clear()


def resize_grid(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resize [1, n, n, C] to [1, side, side, C]: bicubic with antialiasing in fp32, as the original code does."""
    if table.shape[1] == side:
        return table
    planes = table.permute(0, 3, 1, 2).float()
    resized = interpolate(planes, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


def relative_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """Return [side, side, C], the embedding of the distance of each (query, key), from a table [L, C].

    A table whose length L is not 2·side − 1 is interpolated linearly in fp32.
    """
    length = 2 * side - 1
    if table.shape[0] != length:
        rows = table.float().T[None]
        table = interpolate(rows, size=length, mode="linear")[0].T.to(table.dtype)
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None, :] + side - 1]
