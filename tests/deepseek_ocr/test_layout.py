"""The names and shapes of a checkpoint's tensors, compared with the published list."""

from __future__ import annotations

import copy
import json
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ocr_builders import checkpoint_shapes
from safetensors import safe_open

from deepseek_ocr.layout import UNUSED, checked, published_layout

NANO = Path(__file__).parents[2] / "nano" / "checkpoint"
PATCH_EMBEDDING = "model.vision_model.embeddings.patch_embedding.weight"

ROWS = {
    "model.embed_tokens.weight": (129280, 1280),
    "lm_head.weight": (129280, 1280),
    "model.norm.weight": (1280,),
    "model.layers.0.input_layernorm.weight": (1280,),
    "model.layers.11.post_attention_layernorm.weight": (1280,),
    "model.layers.0.self_attn.q_proj.weight": (1280, 1280),
    "model.layers.3.self_attn.k_proj.weight": (1280, 1280),
    "model.layers.7.self_attn.v_proj.weight": (1280, 1280),
    "model.layers.11.self_attn.o_proj.weight": (1280, 1280),
    "model.layers.0.mlp.gate_proj.weight": (6848, 1280),
    "model.layers.0.mlp.up_proj.weight": (6848, 1280),
    "model.layers.0.mlp.down_proj.weight": (1280, 6848),
    "model.layers.1.mlp.gate.weight": (64, 1280),
    "model.layers.11.mlp.gate.weight": (64, 1280),
    "model.layers.1.mlp.experts.0.gate_proj.weight": (896, 1280),
    "model.layers.6.mlp.experts.31.up_proj.weight": (896, 1280),
    "model.layers.11.mlp.experts.63.down_proj.weight": (1280, 896),
    "model.layers.1.mlp.shared_experts.gate_proj.weight": (1792, 1280),
    "model.layers.5.mlp.shared_experts.up_proj.weight": (1792, 1280),
    "model.layers.11.mlp.shared_experts.down_proj.weight": (1280, 1792),
    "model.projector.layers.weight": (1280, 2048),
    "model.projector.layers.bias": (1280,),
    "model.image_newline": (1280,),
    "model.view_seperator": (1280,),
    "model.sam_model.pos_embed": (1, 64, 64, 768),
    "model.sam_model.patch_embed.proj.weight": (768, 3, 16, 16),
    "model.sam_model.patch_embed.proj.bias": (768,),
    "model.sam_model.blocks.0.norm1.weight": (768,),
    "model.sam_model.blocks.11.norm2.bias": (768,),
    "model.sam_model.blocks.0.attn.rel_pos_h": (27, 64),
    "model.sam_model.blocks.2.attn.rel_pos_h": (127, 64),
    "model.sam_model.blocks.5.attn.rel_pos_w": (127, 64),
    "model.sam_model.blocks.8.attn.rel_pos_h": (127, 64),
    "model.sam_model.blocks.10.attn.rel_pos_w": (27, 64),
    "model.sam_model.blocks.11.attn.rel_pos_w": (127, 64),
    "model.sam_model.blocks.4.attn.qkv.weight": (2304, 768),
    "model.sam_model.blocks.4.attn.qkv.bias": (2304,),
    "model.sam_model.blocks.4.attn.proj.weight": (768, 768),
    "model.sam_model.blocks.4.attn.proj.bias": (768,),
    "model.sam_model.blocks.9.mlp.lin1.weight": (3072, 768),
    "model.sam_model.blocks.9.mlp.lin1.bias": (3072,),
    "model.sam_model.blocks.9.mlp.lin2.weight": (768, 3072),
    "model.sam_model.blocks.9.mlp.lin2.bias": (768,),
    "model.sam_model.neck.0.weight": (256, 768, 1, 1),
    "model.sam_model.neck.1.weight": (256,),
    "model.sam_model.neck.2.weight": (256, 256, 3, 3),
    "model.sam_model.neck.3.bias": (256,),
    "model.sam_model.net_2.weight": (512, 256, 3, 3),
    "model.sam_model.net_3.weight": (1024, 512, 3, 3),
    "model.vision_model.embeddings.class_embedding": (1024,),
    PATCH_EMBEDDING: (1024, 3, 14, 14),
    "model.vision_model.embeddings.position_embedding.weight": (257, 1024),
    "model.vision_model.pre_layrnorm.weight": (1024,),
    "model.vision_model.pre_layrnorm.bias": (1024,),
    "model.vision_model.transformer.layers.0.layer_norm1.weight": (1024,),
    "model.vision_model.transformer.layers.23.layer_norm2.bias": (1024,),
    "model.vision_model.transformer.layers.12.self_attn.qkv_proj.weight": (3072, 1024),
    "model.vision_model.transformer.layers.12.self_attn.qkv_proj.bias": (3072,),
    "model.vision_model.transformer.layers.12.self_attn.out_proj.weight": (1024, 1024),
    "model.vision_model.transformer.layers.12.self_attn.out_proj.bias": (1024,),
    "model.vision_model.transformer.layers.23.mlp.fc1.weight": (4096, 1024),
    "model.vision_model.transformer.layers.23.mlp.fc1.bias": (4096,),
    "model.vision_model.transformer.layers.23.mlp.fc2.weight": (1024, 4096),
    "model.vision_model.transformer.layers.23.mlp.fc2.bias": (1024,),
}


def test_the_published_model_has_2710_tensors(published_config: dict[str, Any]) -> None:
    layout = published_layout(published_config)
    assert len(layout) == 2710
    assert sum(map(prod, layout.values())) == 3_336_106_240
    assert {name: layout.get(name) for name in ROWS} == ROWS
    assert layout == checkpoint_shapes(published_config)


def test_the_unused_tensor_is_published(published_config: dict[str, Any]) -> None:
    assert frozenset({PATCH_EMBEDDING}) == UNUSED
    assert published_layout(published_config).keys() >= UNUSED


def test_the_embedded_checkpoint_has_its_layout() -> None:
    config = json.loads((NANO / "config.json").read_text())
    with safe_open(NANO / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    layout = published_layout(config)
    assert layout == checkpoint_shapes(config)
    assert shapes == layout


def test_a_config_of_another_model(published_config: dict[str, Any]) -> None:
    foreign = copy.deepcopy(published_config)
    foreign["vision_config"] = {"model_type": "siglip", "image_size": 384}
    with pytest.raises(ValueError, match="vision_config"):
        published_layout(foreign)


class TestChecked:
    layout: ClassVar = {"a.weight": (2, 3), "b.bias": (3,), PATCH_EMBEDDING: (1, 2)}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(shape) for name, shape in self.layout.items()}

    def test_used_tensors_are_passed_on(self) -> None:
        tensors = self.tensors()
        passed = dict(checked(tensors.items(), self.layout))
        assert passed.keys() == {"a.weight", "b.bias"}
        assert all(passed[name] is tensors[name] for name in passed)

    def test_an_unexpected_tensor(self) -> None:
        with pytest.raises(ValueError, match=r"has an unexpected tensor: c\.weight$"):
            dict(checked([*self.tensors().items(), ("c.weight", torch.zeros(1))], self.layout))

    @pytest.mark.parametrize("name", ["a.weight", PATCH_EMBEDDING])
    def test_a_tensor_with_the_wrong_shape(self, name: str) -> None:
        tensors = self.tensors() | {name: torch.zeros(3, 2)}
        shape = rf"\[{', '.join(map(str, self.layout[name]))}\]"
        with pytest.raises(ValueError, match=rf"{name} has shape \[3, 2\].* must be {shape}"):
            dict(checked(tensors.items(), self.layout))

    @pytest.mark.parametrize("name", layout)
    def test_a_missing_tensor(self, name: str) -> None:
        tensors = self.tensors()
        del tensors[name]
        with pytest.raises(ValueError, match=rf"is missing 1 tensor: {name}$"):
            dict(checked(tensors.items(), self.layout))

    def test_many_missing_tensors(self, published_config: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"is missing 2710 tensors: lm_head\.weight, .* and 2705 more$"):
            dict(checked([], published_layout(published_config)))
