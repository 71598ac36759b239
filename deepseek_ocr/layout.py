"""The names and shapes of the tensors in a published checkpoint, derived from its config.

`deepseek-ai/DeepSeek-OCR` has 2,710 tensors with 3,336,106,240 parameters. Weights are checked against this list when
they are loaded, so that a damaged or wrong checkpoint causes an error instead of bad answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from deepseek_ocr.encoder import EncoderConfig

Shape = tuple[int, ...]

UNUSED = frozenset({"model.vision_model.embeddings.patch_embedding.weight"})
"""Tensors that are published but never used: SAM's output replaces CLIP's own patch embedding."""


def published_layout(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return tensor name → shape for a checkpoint with this `config.json`.

    Raises:
        ValueError: The config does not describe a DeepSeek-OCR model.
    """
    try:
        encoder = EncoderConfig.from_checkpoint(config["vision_config"], config["projector_config"])
        return {**_decoder(config["language_config"]), **_encoder(encoder)}
    except KeyError as error:
        raise ValueError(f"the config does not describe a DeepSeek-OCR model: it has no {error}") from error


def checked(
    weights: Iterable[tuple[str, torch.Tensor]], layout: Mapping[str, Shape]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that the model uses, and check all tensors against `layout`.

    Raises:
        ValueError: A tensor is unexpected or has the wrong shape (raised when it is reached), or tensors are missing
            (raised after the last one).
    """
    missing = dict(layout)
    for name, tensor in weights:
        if name not in layout:
            raise ValueError(f"the checkpoint has an unexpected tensor: {name}")
        if tuple(tensor.shape) != layout[name]:
            raise ValueError(
                f"tensor {name} has shape {list(tensor.shape)}, but according to the checkpoint's config it must be "
                f"{list(layout[name])}"
            )
        missing.pop(name, None)
        if name not in UNUSED:
            yield name, tensor
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        plural = "s" if len(names) > 1 else ""
        raise ValueError(f"the checkpoint is missing {len(names)} tensor{plural}: {', '.join(names[:5])}{more}")


def _decoder(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
        for projection in "qkvo":
            shapes[f"{name}.self_attn.{projection}_proj.weight"] = (hidden, hidden)
        if layer < config["first_k_dense_replace"]:
            shapes |= _gated_mlp(f"{name}.mlp", hidden, config["intermediate_size"])
            continue
        inner = config["moe_intermediate_size"]
        shapes[f"{name}.mlp.gate.weight"] = (config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            shapes |= _gated_mlp(f"{name}.mlp.experts.{expert}", hidden, inner)
        shapes |= _gated_mlp(f"{name}.mlp.shared_experts", hidden, inner * config["n_shared_experts"])
    return shapes


def _encoder(config: EncoderConfig) -> dict[str, Shape]:
    return {
        **_sam("model.sam_model", config),
        **_clip("model.vision_model", config),
        **_linear("model.projector.layers", config.projector_input, config.hidden_size),
        "model.image_newline": (config.hidden_size,),
        "model.view_seperator": (config.hidden_size,),
    }


def _sam(name: str, config: EncoderConfig) -> dict[str, Shape]:
    sam = config.sam
    first, second = sam.downsample
    shapes: dict[str, Shape] = {
        f"{name}.pos_embed": (1, sam.table_side, sam.table_side, sam.width),
        f"{name}.patch_embed.proj.weight": (sam.width, 3, 16, 16),
        f"{name}.patch_embed.proj.bias": (sam.width,),
        f"{name}.neck.0.weight": (sam.neck, sam.width, 1, 1),
        **_norm(f"{name}.neck.1", sam.neck),
        f"{name}.neck.2.weight": (sam.neck, sam.neck, 3, 3),
        **_norm(f"{name}.neck.3", sam.neck),
        f"{name}.net_2.weight": (first, sam.neck, 3, 3),
        f"{name}.net_3.weight": (second, first, 3, 3),
    }
    for layer in range(sam.layers):
        block = f"{name}.blocks.{layer}"
        side = sam.table_side if layer in sam.global_layers else sam.window_size
        shapes |= _norm(f"{block}.norm1", sam.width) | _norm(f"{block}.norm2", sam.width)
        for axis in "hw":
            shapes[f"{block}.attn.rel_pos_{axis}"] = (2 * side - 1, sam.width // sam.heads)
        shapes |= _linear(f"{block}.attn.qkv", sam.width, 3 * sam.width)
        shapes |= _linear(f"{block}.attn.proj", sam.width, sam.width)
        shapes |= _linear(f"{block}.mlp.lin1", sam.width, 4 * sam.width)
        shapes |= _linear(f"{block}.mlp.lin2", 4 * sam.width, sam.width)
    return shapes


def _clip(name: str, config: EncoderConfig) -> dict[str, Shape]:
    clip = config.clip
    width = clip.width
    shapes: dict[str, Shape] = {
        f"{name}.embeddings.class_embedding": (width,),
        f"{name}.embeddings.patch_embedding.weight": (width, 3, clip.patch_size, clip.patch_size),
        f"{name}.embeddings.position_embedding.weight": (1 + clip.table_side**2, width),
        **_norm(f"{name}.pre_layrnorm", width),
    }
    for layer in range(clip.layers):
        block = f"{name}.transformer.layers.{layer}"
        shapes |= _norm(f"{block}.layer_norm1", width) | _norm(f"{block}.layer_norm2", width)
        shapes |= _linear(f"{block}.self_attn.qkv_proj", width, 3 * width)
        shapes |= _linear(f"{block}.self_attn.out_proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, 4 * width)
        shapes |= _linear(f"{block}.mlp.fc2", 4 * width, width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _gated_mlp(name: str, hidden: int, inner: int) -> dict[str, Shape]:
    return {
        f"{name}.gate_proj.weight": (inner, hidden),
        f"{name}.up_proj.weight": (inner, hidden),
        f"{name}.down_proj.weight": (hidden, inner),
    }
