"""CLIP's vision transformer, which reads SAM's output instead of its own patch embedding.

Module names are those of the checkpoint, including its spelling `pre_layrnorm`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from deepseek_ocr.encoder.config import ClipConfig
from deepseek_ocr.encoder.positions import TableCache, resize_grid

EPS = 1e-5


class Clip(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=EPS)
        self.transformer = Transformer(config)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Encode SAM's output [B, width, n, n] as [B, 1 + n·n, width], with the class token first."""
        x: torch.Tensor = self.transformer(self.pre_layrnorm(self.embeddings(features)))
        return x


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.position_embedding = nn.Embedding(1 + config.table_side**2, config.width)
        self.table_side = config.table_side
        self._positions = TableCache()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return x + self._positions.get(features.shape[-1], self.position_embedding.weight, self._positions_at)

    def _positions_at(self, table: torch.Tensor, side: int) -> torch.Tensor:
        """Resize the table [1 + table_side², C] to [1 + side², C]. The class token's row is not changed."""
        grid = table[1:].view(1, self.table_side, self.table_side, -1)
        return torch.cat([table[:1], resize_grid(grid, side).reshape(side * side, -1)])


class Transformer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        x = x + self.mlp(self.layer_norm2(x))
        return x


class Attention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, places, width = x.shape
        qkv = self.qkv_proj(x).view(batch, places, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, places, width))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(quick_gelu(self.fc1(x)))
        return y


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)
