"""The vision encoder at its published size, with random weights.

Encoding many images in one batch is compared with encoding them one at a time, and with attention that is implemented
as its formula.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import MethodType

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.compare import Row, Series, compared, in_turn, rates
from deepseek_ocr.encoder import DeepEncoder, EncoderConfig
from deepseek_ocr.encoder.config import ClipConfig, SamConfig
from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.encoder.positions import relative_positions
from deepseek_ocr.encoder.sam import Attention as SamAttention
from deepseek_ocr.images import prepare_image
from deepseek_ocr.memory import keep_memory
from deepseek_ocr.modes import MODES
from nano.render import Sheet, render

PUBLISHED = EncoderConfig(SamConfig(), ClipConfig())
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second, from NVIDIA's data sheets."""


def run(quick: bool) -> list[Row]:
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    keep_memory()  # as the engine's process does
    torch.manual_seed(0)
    with torch.device(device):
        encoder = DeepEncoder(PUBLISHED).to(dtype).eval()
        plain = DeepEncoder(PUBLISHED).to(dtype).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.02)
    plain.load_state_dict(encoder.state_dict())
    for module in plain.modules():
        if isinstance(module, SamAttention):
            module.forward = MethodType(plain_attention, module)  # type: ignore[method-assign]
    cases = (("tiny", 128), ("gundam", 64)) if cuda else (("tiny", 2),) if quick else (("tiny", 4), ("small", 2))
    rows = []
    with torch.inference_mode():
        for mode, count in cases:
            images = views(mode, count, device)
            rows += compare(encoder, plain, mode, images, rounds=1 if quick else 10 if cuda else 2)
    return rows


def views(mode: str, count: int, device: str) -> list[Views]:
    """Return the views of `count` rendered pages in a resolution mode."""
    sheet = Sheet(width=1240, height=1754, max_lines=40, clean=True)
    prepared = [prepare_image(render(sheet, random.Random(number)).image, MODES[mode]) for number in range(count)]
    return [Views(each.global_view.to(device), each.tiles.to(device), each.grid) for each in prepared]


def compare(encoder: DeepEncoder, plain: DeepEncoder, mode: str, images: Sequence[Views], *, rounds: int) -> list[Row]:
    """Compare `encoder` on a batch with itself on single images, and with `plain` on the same batch."""

    def batch(model: DeepEncoder = encoder) -> list[torch.Tensor]:
        embeddings = model.embed(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return embeddings

    def one_by_one() -> list[torch.Tensor]:
        embeddings = [embedding for image in images for embedding in encoder.embed([image])]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return embeddings

    difference = max((a - b).abs().max().item() for a, b in zip(batch(), batch(plain), strict=True))
    where = f"{torch.cuda.get_device_name()}, bf16" if torch.cuda.is_available() else "CPU, fp32"
    name = f"encoder, {len(images)} images in {mode} mode, {where}"
    rows = []
    for other, compared_with in ((one_by_one, "one image at a time"), (lambda: batch(plain), "plain attention")):
        series = rates(in_turn(batch, other, rounds=rounds), len(images))
        target = 2 if torch.cuda.is_available() else 1
        note = f"largest difference {difference:.1e}" + peak_share(encoder, images, series[0])
        rows.append(compared(name, "images/s", series, compared_with=compared_with, at_least=target, note=note))
    return rows


def peak_share(encoder: DeepEncoder, images: Sequence[Views], speed: Series) -> str:
    """Return a note with the operations per second and their share of the card's peak; "" without a GPU.

    Args:
        encoder: the encoder.
        images: views of images of one size.
        speed: images per second.
    """
    if not torch.cuda.is_available():
        return ""
    peak = next((peak for card, peak in BF16_PEAK.items() if card in torch.cuda.get_device_name()), None)
    with FlopCounterMode(display=False) as counter:
        encoder.embed(images[:1])
    operations = counter.get_total_flops() * speed.median
    share = f", {operations / peak:.0%} of the card's peak" if peak else ""
    return f"; {operations / 1e12:.0f} Tflop/s{share}"


def plain_attention(self: SamAttention, x: torch.Tensor) -> torch.Tensor:
    """SAM's attention implemented as its formula, without a fused kernel and without caching.

    Args:
        self: the module whose weights are used.
        x: [B, height, width, channels].

    Returns:
        [B, height, width, channels].
    """
    batch, height, width, channels = x.shape
    positions, size = height * width, channels // self.heads
    q, k, v = self.qkv(x).view(batch, positions, 3, self.heads, size).permute(2, 0, 3, 1, 4)
    grid = q.reshape(batch, self.heads, height, width, size)
    rows = self._rows.get(height, self.rel_pos_h, relative_positions)
    columns = self._columns.get(width, self.rel_pos_w, relative_positions)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)
    bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(batch, self.heads, positions, positions)
    weights = (q @ k.transpose(-2, -1) * size**-0.5 + bias).softmax(-1)
    y = (weights @ v).transpose(1, 2).reshape(batch, height, width, channels)
    out: torch.Tensor = self.proj(y)
    return out
