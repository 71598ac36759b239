"""The vision encoder at the published sizes, with random weights: many pictures together against one at a time, and
against attention written out."""

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
"""Dense bf16 operations a second, by NVIDIA's data sheets."""


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
            module.forward = MethodType(written_out, module)  # type: ignore[method-assign]
    cases = (("tiny", 128), ("gundam", 64)) if cuda else (("tiny", 2),) if quick else (("tiny", 4), ("small", 2))
    rows = []
    with torch.inference_mode():
        for mode, count in cases:
            pictures = views(mode, count, device)
            rows += compare(encoder, plain, mode, pictures, rounds=1 if quick else 10 if cuda else 2)
    return rows


def views(mode: str, count: int, device: str) -> list[Views]:
    sheet = Sheet(width=1240, height=1754, max_lines=40, clean=True)
    prepared = [prepare_image(render(sheet, random.Random(number)).image, MODES[mode]) for number in range(count)]
    return [Views(each.global_view.to(device), each.tiles.to(device), each.grid) for each in prepared]


def compare(
    encoder: DeepEncoder, plain: DeepEncoder, mode: str, pictures: Sequence[Views], *, rounds: int
) -> list[Row]:
    def together(model: DeepEncoder = encoder) -> list[torch.Tensor]:
        found = model.embed(pictures)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found

    def one_by_one() -> list[torch.Tensor]:
        found = [embedding for picture in pictures for embedding in encoder.embed([picture])]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found

    worst = max((a - b).abs().max().item() for a, b in zip(together(), together(plain), strict=True))
    where = f"{torch.cuda.get_device_name()}, bf16" if torch.cuda.is_available() else "CPU, fp32"
    name = f"encoder, {len(pictures)} pictures in {mode} mode, {where}"
    rows = []
    for other, with_whom in ((one_by_one, "one picture at a time"), (lambda: together(plain), "attention written out")):
        series = rates(in_turn(together, other, rounds=rounds), len(pictures))
        least = 2 if torch.cuda.is_available() else 1
        note = f"largest difference {worst:.1e}" + peak_share(encoder, pictures, series[0])
        rows.append(compared(name, "pictures/s", series, compared_with=with_whom, at_least=least, note=note))
    return rows


def peak_share(encoder: DeepEncoder, pictures: Sequence[Views], speed: Series) -> str:
    """What part of the card's arithmetic is used."""
    if not torch.cuda.is_available():
        return ""
    peak = next((peak for card, peak in BF16_PEAK.items() if card in torch.cuda.get_device_name()), None)
    with FlopCounterMode(display=False) as counter:
        encoder.embed(pictures[:1])
    operations = counter.get_total_flops() * speed.median
    share = f", {operations / peak:.0%} of the card's peak" if peak else ""
    return f"; {operations / 1e12:.0f} Tflop/s{share}"


def written_out(self: SamAttention, x: torch.Tensor) -> torch.Tensor:
    """SAM's attention as its formula stands: no fused kernel, nothing kept between calls."""
    batch, height, width, channels = x.shape
    places, size = height * width, channels // self.heads
    q, k, v = self.qkv(x).view(batch, places, 3, self.heads, size).permute(2, 0, 3, 1, 4)
    grid = q.reshape(batch, self.heads, height, width, size)
    rows = self._rows.get(height, self.rel_pos_h, relative_positions)
    columns = self._columns.get(width, self.rel_pos_w, relative_positions)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)
    bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(batch, self.heads, places, places)
    weights = (q @ k.transpose(-2, -1) * size**-0.5 + bias).softmax(-1)
    y = (weights @ v).transpose(1, 2).reshape(batch, height, width, channels)
    out: torch.Tensor = self.proj(y)
    return out
