"""Inputs for the tests: small encoders, random weights, pictures and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from deepseek_ocr.encoder import ClipConfig, DeepEncoder, EncoderConfig, SamConfig

M = TypeVar("M", bound=nn.Module)

# Windowed layers only: attention over a whole large picture takes most of the time.
FAST = EncoderConfig(
    sam=SamConfig(
        width=16, layers=1, heads=2, global_layers=(), window_size=7, neck=8, downsample=(8, 16), table_side=8
    ),
    clip=ClipConfig(width=16, layers=1, heads=2, table_side=4),
    hidden_size=24,
)
SMALL = EncoderConfig(
    sam=SamConfig(
        width=48, layers=4, heads=3, global_layers=(1, 3), window_size=7, neck=24, downsample=(32, 64), table_side=16
    ),
    clip=ClipConfig(width=64, layers=3, heads=4, table_side=4),
    hidden_size=40,
)


def random_encoder(config: EncoderConfig, seed: int = 0) -> DeepEncoder:
    return randomised(DeepEncoder(config), seed).eval()


def randomised(module: M, seed: int = 0) -> M:
    """Give every parameter, including position tables, norms and biases, values that affect the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(random_tensor(name, parameter.shape, generator))
    return module


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return random values for the parameter `name`, of a size that keeps signals near 1 through the layers."""
    values = torch.randn(shape, generator=generator)
    if "norm" in name or name.endswith(("neck.1.weight", "neck.3.weight")):
        return 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
    if len(shape) == 1:
        return 0.3 * values
    if "pos" in name or "embed_tokens" in name:
        return 0.5 * values
    fan_in = int(np.prod(shape[1:]))
    return values / fan_in**0.5


def smooth_picture(width: int, height: int) -> Image.Image:
    """Return smooth waves of colour that differ between channels and axes and are not symmetric."""
    x = np.linspace(0.0, 1.0, width)[None, :]
    y = np.linspace(0.0, 1.0, height)[:, None]
    waves = [
        np.sin(3.1 * x + 1.7 * y),
        np.cos(2.3 * y - 4.1 * x),
        0.9 * x - 0.6 * y + 0.3 * np.sin(5 * x * y),
    ]
    pixels = np.stack([127.5 + 120.0 * np.clip(wave, -1, 1) for wave in waves], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def noisy_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture in which every pixel has a random colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def random_checkpoint(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a state dict of random fp32 weights for `config`, with the published names.

    The names are written out here from the published list, not taken from the code under test.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: random_tensor(name, shape, generator) for name, shape in checkpoint_shapes(config).items()}


def checkpoint_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape of a published checkpoint, in the order of the published list."""
    decoder, vision = config["language_config"], config["vision_config"]
    sam, clip = vision["width"]["sam_vit_b"], vision["width"]["clip-l-14-224"]
    d, v = decoder["hidden_size"], decoder["vocab_size"]
    rows: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d)}
    rows["model.norm.weight"] = (d,)
    for i in range(decoder["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            rows[f"{layer}{norm}.weight"] = (d,)
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            rows[f"{layer}self_attn.{projection}.weight"] = (d, d)
        mlps = {"mlp": decoder["intermediate_size"]}
        if i > 0:
            rows[f"{layer}mlp.gate.weight"] = (decoder["n_routed_experts"], d)
            f = decoder["moe_intermediate_size"]
            mlps = {f"mlp.experts.{e}": f for e in range(decoder["n_routed_experts"])}
            mlps["mlp.shared_experts"] = f * decoder["n_shared_experts"]
        for mlp, f in mlps.items():
            rows[f"{layer}{mlp}.gate_proj.weight"] = rows[f"{layer}{mlp}.up_proj.weight"] = (f, d)
            rows[f"{layer}{mlp}.down_proj.weight"] = (d, f)

    w, c, neck = sam["width"], clip["width"], sam.get("neck", 256)
    first, second = sam["downsample_channels"]
    rows |= {
        "model.projector.layers.weight": (d, c + second),
        "model.projector.layers.bias": (d,),
        "model.image_newline": (d,),
        "model.view_seperator": (d,),
        "model.sam_model.pos_embed": (1, vision["image_size"] // 16, vision["image_size"] // 16, w),
        "model.sam_model.patch_embed.proj.weight": (w, 3, 16, 16),
        "model.sam_model.patch_embed.proj.bias": (w,),
        "model.sam_model.neck.0.weight": (neck, w, 1, 1),
        "model.sam_model.neck.1.weight": (neck,),
        "model.sam_model.neck.1.bias": (neck,),
        "model.sam_model.neck.2.weight": (neck, neck, 3, 3),
        "model.sam_model.neck.3.weight": (neck,),
        "model.sam_model.neck.3.bias": (neck,),
        "model.sam_model.net_2.weight": (first, neck, 3, 3),
        "model.sam_model.net_3.weight": (second, first, 3, 3),
        "model.vision_model.embeddings.class_embedding": (c,),
        "model.vision_model.embeddings.patch_embedding.weight": (c, 3, 14, 14),
        "model.vision_model.embeddings.position_embedding.weight": (257, c),
        "model.vision_model.pre_layrnorm.weight": (c,),
        "model.vision_model.pre_layrnorm.bias": (c,),
    }
    for i in range(sam["layers"]):
        block = f"model.sam_model.blocks.{i}."
        table = 127 if i in sam["global_attn_indexes"] else 2 * sam.get("window_size", 14) - 1
        rows[f"{block}attn.rel_pos_h"] = rows[f"{block}attn.rel_pos_w"] = (table, w // sam["heads"])
        linears = {"attn.qkv": (3 * w, w), "attn.proj": (w, w), "mlp.lin1": (4 * w, w), "mlp.lin2": (w, 4 * w)}
        _add_layer(rows, block, ("norm1", "norm2"), w, linears)
    for i in range(clip["layers"]):
        layer = f"model.vision_model.transformer.layers.{i}."
        linears = {
            "self_attn.qkv_proj": (3 * c, c),
            "self_attn.out_proj": (c, c),
            "mlp.fc1": (4 * c, c),
            "mlp.fc2": (c, 4 * c),
        }
        _add_layer(rows, layer, ("layer_norm1", "layer_norm2"), c, linears)
    return rows


def _add_layer(
    rows: dict[str, tuple[int, ...]],
    prefix: str,
    norms: tuple[str, str],
    width: int,
    linears: Mapping[str, tuple[int, int]],
) -> None:
    for norm in norms:
        rows[f"{prefix}{norm}.weight"] = rows[f"{prefix}{norm}.bias"] = (width,)
    for linear, shape in linears.items():
        rows[f"{prefix}{linear}.weight"] = shape
        rows[f"{prefix}{linear}.bias"] = shape[:1]
