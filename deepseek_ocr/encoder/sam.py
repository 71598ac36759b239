"""SAM's image encoder, followed by DeepSeek-OCR's 16× compressor.

Module names are those of the checkpoint. Shapes: B views, H × W patches, C channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from deepseek_ocr.encoder.config import PATCH_SIZE, SamConfig
from deepseek_ocr.encoder.positions import TableCache, relative_positions, resize_grid

EPS = 1e-6


class Sam(nn.Module):
    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.table_side, config.table_side, config.width))
        self.blocks = nn.ModuleList(
            Block(config, window=None if layer in config.global_layers else config.window_size)
            for layer in range(config.layers)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.neck, kernel_size=1, bias=False),
            LayerNorm2d(config.neck, eps=EPS),
            nn.Conv2d(config.neck, config.neck, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.neck, eps=EPS),
        )
        first, second = config.downsample
        self.net_2 = nn.Conv2d(config.neck, first, kernel_size=3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1, bias=False)
        self._positions = TableCache()

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last block's patches [B, H, W, C], before the neck, for normalised pixels [B, 3, h, w]."""
        x: torch.Tensor = self.patch_embed(pixels)
        x = x + self._positions.get(x.shape[1], self.pos_embed, resize_grid)
        for block in self.blocks:
            x = block(x)
        return x

    def compress(self, patches: torch.Tensor) -> torch.Tensor:
        """Compress patches [B, H, W, C] to [B, downsample[1], H / 4, W / 4]."""
        x: torch.Tensor = self.net_3(self.net_2(self.neck(patches.permute(0, 3, 1, 2))))
        return x

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised pixels of square views [B, 3, h, w] as [B, downsample[1], h / 64, w / 64]."""
        return self.compress(self.patches(pixels))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.proj(pixels)
        return x.permute(0, 2, 3, 1)


class Block(nn.Module):
    """A transformer layer with attention in windows of `window` patches a side, or over the whole picture if None."""

    def __init__(self, config: SamConfig, window: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config.width, config.heads, table_side=window or config.table_side)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config.width)
        self.window = window

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        if self.window is None:
            y = self.attn(y)
        else:
            height, width = x.shape[1:3]
            y = join_windows(self.attn(split_windows(y, self.window)), self.window, height, width)
        x = x + y
        x = x + self.mlp(self.norm2(x))
        return x


class Attention(nn.Module):
    """Multi-head attention with SAM's decomposed relative position embeddings.

    The bias q · R_h[row distance] + q · R_w[column distance] is added to the logits. Here q is not scaled.
    """

    def __init__(self, width: int, heads: int, table_side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self._rows = TableCache()
        self._columns = TableCache()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        places = height * width
        qkv = self.qkv(x).view(batch, places, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        grid = q.reshape(batch, self.heads, height, width, -1)
        rows = self._rows.get(height, self.rel_pos_h, relative_positions)
        columns = self._columns.get(width, self.rel_pos_w, relative_positions)
        by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)
        by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)
        bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(batch, self.heads, places, places)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(batch, height, width, channels))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.lin2(F.gelu(self.lin1(x)))
        return y


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def split_windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """Cut [B, H, W, C] into [B · windows, size, size, C]. The right and lower edges are padded with zeros."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    down, across = x.shape[1] // size, x.shape[2] // size
    x = x.view(batch, down, size, across, size, channels).transpose(2, 3)
    return x.reshape(-1, size, size, channels)


def join_windows(windows: torch.Tensor, size: int, height: int, width: int) -> torch.Tensor:
    """Undo `split_windows`: return [B, height, width, C] without the padding."""
    down, across = -(-height // size), -(-width // size)
    x = windows.view(-1, down, across, size, size, windows.shape[-1]).transpose(2, 3)
    return x.reshape(x.shape[0], down * size, across * size, -1)[:, :height, :width]
