"""Independent implementations to compare ours with: transformers' modules and plain loops.

Weights are state dicts with the published names, and are renamed for transformers. Nothing here uses the encoder under
test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import (
    DeepseekOcr2SamVisionConfig,
    DeepseekOcr2TextConfig,
)
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2SamVisionEncoder,
    DeepseekOcr2TextModel,
)

State = Mapping[str, torch.Tensor]

SAM_NAMES = {
    "patch_embed.proj.": "patch_embed.projection.",
    "blocks.": "layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    "neck.0.": "neck.conv1.",
    "neck.1.": "neck.layer_norm1.",
    "neck.2.": "neck.conv2.",
    "neck.3.": "neck.layer_norm2.",
    "net_2.": "proj.conv1.",
    "net_3.": "proj.conv2.",
}


def under(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """Return the part of a state dict below `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class SamOracle(nn.Module):
    """transformers' SAM for DeepSeek-OCR-2, which differs from DeepSeek-OCR's only in the last channels."""

    def __init__(self, state: State, *, heads: int, global_layers: Sequence[int], window_size: int) -> None:
        super().__init__()
        width = state["pos_embed"].shape[-1]
        config = DeepseekOcr2SamVisionConfig(
            hidden_size=width,
            output_channels=state["neck.0.weight"].shape[0],
            num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            num_attention_heads=heads,
            image_size=16 * state["pos_embed"].shape[1],
            window_size=window_size,
            global_attn_indexes=list(global_layers),
            downsample_channels=[state["net_2.weight"].shape[0], state["net_3.weight"].shape[0]],
        )
        config._attn_implementation = "eager"
        self.model = DeepseekOcr2SamVisionEncoder(config).eval()
        renamed = {}
        for name, value in state.items():
            for ours, theirs in SAM_NAMES.items():
                name = name.replace(ours, theirs)
            renamed[name] = value
        self.model.load_state_dict(renamed)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(pixels).last_hidden_state
        return out


class ClipOracle(nn.Module):
    """transformers' CLIP layers, with embeddings that are assembled here in loops."""

    def __init__(self, state: State, *, heads: int) -> None:
        super().__init__()
        self.class_embedding = state["embeddings.class_embedding"]
        self.table = state["embeddings.position_embedding.weight"]
        width = self.class_embedding.shape[0]
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=heads,
            num_hidden_layers=len({n.split(".")[2] for n in state if n.startswith("transformer.layers.")}),
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        )
        config._attn_implementation = "eager"
        self.encoder = CLIPEncoder(config).eval()
        renamed = {}
        for name, value in under(state, "transformer.").items():
            if ".qkv_proj." in name:
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[name.replace("qkv_proj", f"{letter}_proj")] = part
            else:
                renamed[name] = value
        self.encoder.load_state_dict(renamed)
        self.pre_norm = nn.LayerNorm(width, eps=1e-5)
        self.pre_norm.load_state_dict(under(state, "pre_layrnorm."))

    def forward(self, sam: torch.Tensor) -> torch.Tensor:
        positions = self.positions(sam.shape[-1])
        views = []
        for view in sam:
            tokens = [self.class_embedding + positions[0]]
            for y in range(view.shape[1]):
                for x in range(view.shape[2]):
                    tokens.append(view[:, y, x] + positions[1 + y * view.shape[2] + x])
            views.append(torch.stack(tokens))
        x = self.pre_norm(torch.stack(views))
        out: torch.Tensor = self.encoder(inputs_embeds=x).last_hidden_state
        return out

    def positions(self, side: int) -> torch.Tensor:
        """Return the class token's row, then the other rows, resized with Pillow one channel at a time."""
        n = int((len(self.table) - 1) ** 0.5)
        if n == side:
            return self.table
        channels = []
        for channel in self.table[1:].detach().reshape(n, n, -1).unbind(-1):
            plane = Image.fromarray(channel.contiguous().numpy())
            channels.append(np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC)).reshape(-1))
        resized = torch.from_numpy(np.stack(channels, axis=-1))
        return torch.cat([self.table[:1], resized])


class EncoderOracle(nn.Module):
    """Turns the pixels of a picture into its embeddings, in the decoder's order.

    Args:
        state: Weights with the published names below `model.`.
    """

    def __init__(
        self, state: State, *, sam_heads: int, global_layers: Sequence[int], window_size: int, clip_heads: int
    ) -> None:
        super().__init__()
        self.sam = SamOracle(
            under(state, "sam_model."), heads=sam_heads, global_layers=global_layers, window_size=window_size
        )
        self.clip = ClipOracle(under(state, "vision_model."), heads=clip_heads)
        self.weight, self.bias = state["projector.layers.weight"], state["projector.layers.bias"]
        self.newline, self.separator = state["image_newline"], state["view_seperator"]

    def features(self, view: torch.Tensor) -> torch.Tensor:
        """uint8 [size, size, 3] → [n, n, hidden]."""
        pixels = (view.permute(2, 0, 1)[None].double() / 255 - 0.5) / 0.5
        sam = self.sam(pixels.float())
        clip = self.clip(sam)
        n = sam.shape[-1]
        rows = []
        for y in range(n):
            row = []
            for x in range(n):
                both = torch.cat([clip[0, 1 + y * n + x], sam[0, :, y, x]])
                row.append(self.weight @ both + self.bias)
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def embed(self, global_view: torch.Tensor, tiles: torch.Tensor, wide: int, tall: int) -> torch.Tensor:
        out = []
        if len(tiles):
            features = [self.features(tile) for tile in tiles]
            for tile_row in range(tall):
                for line in range(features[0].shape[0]):
                    for tile_column in range(wide):
                        out.extend(features[tile_row * wide + tile_column][line])
                    out.append(self.newline)
        for line in self.features(global_view):
            out.extend(line)
            out.append(self.newline)
        out.append(self.separator)
        return torch.stack(out)


class ModelOracle:
    """The whole model on transformers' modules: pictures and token ids → logits.

    Args:
        config: The `config.json` of a checkpoint.
        state: Its weights, fp32.
    """

    def __init__(self, config: Mapping[str, Any], state: State) -> None:
        vision, decoder = config["vision_config"], config["language_config"]
        sam = vision["width"]["sam_vit_b"]
        self.encoder = EncoderOracle(
            under(state, "model."),
            sam_heads=sam["heads"],
            global_layers=sam["global_attn_indexes"],
            window_size=sam.get("window_size", 14),
            clip_heads=vision["width"]["clip-l-14-224"]["heads"],
        )
        text = DeepseekOcr2TextConfig(
            vocab_size=decoder["vocab_size"],
            hidden_size=decoder["hidden_size"],
            intermediate_size=decoder["intermediate_size"],
            moe_intermediate_size=decoder["moe_intermediate_size"],
            num_hidden_layers=decoder["num_hidden_layers"],
            num_attention_heads=decoder["num_attention_heads"],
            n_routed_experts=decoder["n_routed_experts"],
            n_shared_experts=decoder["n_shared_experts"],
            num_experts_per_tok=decoder["num_experts_per_tok"],
            max_position_embeddings=decoder["max_position_embeddings"],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            mlp_layer_types=["dense"] + ["sparse"] * (decoder["num_hidden_layers"] - 1),
        )
        text._attn_implementation = "eager"
        text._experts_implementation = "eager"
        self.decoder = DeepseekOcr2TextModel(text).eval()
        self.decoder.load_state_dict(self._decoder_state(state, decoder))
        self.lm_head = state["lm_head.weight"]

    @staticmethod
    def _decoder_state(state: State, decoder: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Rename the decoder's weights. transformers keeps the experts of a layer in one tensor."""
        renamed = {}
        for name, value in under(state, "model.").items():
            if name.startswith(("embed_tokens.", "norm.", "layers.")) and ".experts." not in name:
                renamed[name] = value
        for layer in range(1, decoder["num_hidden_layers"]):
            mlp = f"layers.{layer}.mlp.experts"
            experts = [f"model.{mlp}.{e}" for e in range(decoder["n_routed_experts"])]
            renamed[f"{mlp}.gate_up_proj"] = torch.stack(
                [torch.cat([state[f"{e}.gate_proj.weight"], state[f"{e}.up_proj.weight"]]) for e in experts]
            )
            renamed[f"{mlp}.down_proj"] = torch.stack([state[f"{e}.down_proj.weight"] for e in experts])
        return renamed

    def logits(self, token_ids: Sequence[int], image_token: int, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the logits of the next token at every position, [positions, vocabulary].

        Args:
            token_ids: The prompt and the output so far.
            image_token: The placeholder's id.
            pictures: The embeddings of each picture, which replace the placeholders in order.
        """
        ids = torch.tensor(token_ids)
        embeddings = self.decoder.embed_tokens(ids)
        embeddings[ids == image_token] = torch.cat(list(pictures))
        hidden = self.decoder(inputs_embeds=embeddings[None]).last_hidden_state[0]
        return hidden @ self.lm_head.T

    def greedy(
        self, prompt: Sequence[int], image_token: int, pictures: Sequence[torch.Tensor], steps: int
    ) -> tuple[list[int], torch.Tensor]:
        """Return the most likely continuation, and the log probabilities of the whole vocabulary at each step."""
        ids, steps_taken = list(prompt), []
        for _ in range(steps):
            scores = self.logits(ids, image_token, pictures)[-1].log_softmax(-1)
            steps_taken.append(scores)
            ids.append(int(scores.argmax()))
        return ids[len(prompt) :], torch.stack(steps_taken)
