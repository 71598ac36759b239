"""The small DeepSeek-OCR model as it is trained: the server's own encoder, and a decoder with the published layout.

Parameters have their published names without the prefix `model.`, which `NanoOcr.state` adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from deepseek_ocr.encoder import DeepEncoder, EncoderConfig
from deepseek_ocr.encoder.deep_encoder import Views

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekOCRForCausalLM"],
    "model_type": "deepseek_vl_v2",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tile_tag": "2D",
    "global_view_pos": "head",
    "candidate_resolutions": [[1024, 1024]],
    "projector_config": {
        "input_dim": 768,
        "n_embed": 256,
        "projector_type": "linear",
        "model_type": "mlp_projector",
    },
    "vision_config": {
        "image_size": 1024,
        "mlp_ratio": 4.0,
        "model_name": "deeplip_b_l",
        "model_type": "vision",
        "width": {
            "clip-l-14-224": {"heads": 6, "image_size": 224, "layers": 3, "patch_size": 14, "width": 384},
            "sam_vit_b": {
                "downsample_channels": [192, 384],
                "global_attn_indexes": [],
                "heads": 2,
                "layers": 4,
                "width": 128,
                "neck": 96,
                "window_size": 8,
            },
        },
    },
    "language_config": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 256,
        "intermediate_size": 640,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 96,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": 320,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
}
"""The complete `config.json` of the checkpoint. Only the keys `neck` and `window_size` do not occur in the published
config, where their values are 256 and 14."""


class NanoOcr(nn.Module):
    """DeepSeek-OCR: a vision encoder, and a decoder that reads its vision tokens."""

    def __init__(self, config: dict[str, Any] = CONFIG) -> None:
        super().__init__()
        self.config = config
        self.encoder = DeepEncoder(EncoderConfig.from_checkpoint(config["vision_config"], config["projector_config"]))
        self.decoder = Decoder(config["language_config"])
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.encoder.image_newline, std=0.02)
        nn.init.normal_(self.encoder.view_seperator, std=0.02)
        nn.init.normal_(self.encoder.vision_model.embeddings.class_embedding, std=0.02)
        initialize_positions(self.encoder)

    def embed(self, images: Sequence[Views]) -> list[torch.Tensor]:
        """Return the vision tokens of each image, [vision tokens, hidden]."""
        return self.encoder.embed(images)

    def forward(self, images: list[torch.Tensor], tokens: torch.Tensor, questions: Sequence[int] = ()) -> torch.Tensor:
        """Return the logits of the next token after each of `tokens`.

        Args:
            images: B × [vision tokens, hidden], all with the same number of vision tokens.
            tokens: [B, T], the ids that follow the image.
            questions: if `tokens` is the concatenation of several questions about the image, their lengths. Each
                question is evaluated as if it directly followed the image and the others did not exist. Empty for a
                single question.

        Returns:
            [B, T, vocabulary].
        """
        first = torch.zeros(len(images), 1, dtype=torch.long, device=tokens.device)  # bos
        embedded = torch.cat(
            [self.decoder.embed_tokens(first), torch.stack(images), self.decoder.embed_tokens(tokens)], dim=1
        )
        hidden = self.decoder(embedded, questions)[:, -tokens.shape[1] :]
        logits: torch.Tensor = self.decoder.lm_head(hidden)
        return logits

    @torch.no_grad()
    def read(self, images: list[torch.Tensor], prompt: torch.Tensor, most: int) -> list[list[int]]:
        """Generate answers greedily, with a cache of keys and values.

        Args:
            images: B × [vision tokens, hidden], all with the same number of vision tokens.
            prompt: [T], the ids of the prompt, which is the same for all images.
            most: maximum number of tokens in each answer.

        Returns:
            The ids of each of the B answers, without the eos token.
        """
        batch = len(images)
        cache: list[list[torch.Tensor]] = [[] for _ in self.decoder.layers]
        first = torch.zeros(batch, 1, dtype=torch.long, device=prompt.device)
        x = torch.cat(
            [
                self.decoder.embed_tokens(first),
                torch.stack(images),
                self.decoder.embed_tokens(prompt.expand(batch, -1)),
            ],
            dim=1,
        )
        answers: list[list[int]] = [[] for _ in range(batch)]
        unfinished = torch.ones(batch, dtype=torch.bool, device=prompt.device)
        for _ in range(most):
            tokens = self.decoder.lm_head(self.decoder(x, cache=cache)[:, -1]).argmax(-1)
            unfinished &= tokens != self.config["eos_token_id"]
            if not unfinished.any():
                break
            for answer, token, goes_on in zip(answers, tokens.tolist(), unfinished.tolist(), strict=True):
                if goes_on:
                    answer.append(token)
            x = self.decoder.embed_tokens(tokens[:, None])
        return answers

    def state(self) -> dict[str, torch.Tensor]:
        """Return the parameters by their published names, in bf16."""
        named = {f"model.{name}": value for name, value in self.encoder.state_dict().items()}
        for name, value in self.decoder.state_dict().items():
            named[name if name.startswith("lm_head") else f"model.{name}"] = value
        clip = self.config["vision_config"]["width"]["clip-l-14-224"]
        unused = (clip["width"], 3, clip["patch_size"], clip["patch_size"])
        named["model.vision_model.embeddings.patch_embedding.weight"] = torch.zeros(unused)
        return {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in named.items()}


def load(checkpoint: Path) -> NanoOcr:
    """Load the checkpoint in a folder. Its weights are converted to fp32."""
    model = NanoOcr(json.loads((checkpoint / "config.json").read_text()))
    weights = {
        name.removeprefix("model."): value.float()
        for name, value in load_file(str(checkpoint / "model.safetensors")).items()
    }
    for part in (model.encoder, model.decoder):
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
    return model


def initialize_positions(encoder: DeepEncoder) -> None:
    """Initialize the position tables of SAM and CLIP with 2-D sinusoids, and relative positions with random values.

    If they are initialized with zeros, SAM cannot distinguish neighbouring patches, and the decoder does not learn the
    order of lines.
    """
    sam = encoder.sam_model.pos_embed
    clip = encoder.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        sam.copy_(0.3 * sinusoids(sam.shape[1], sam.shape[3], longest=63)[None])
        side = encoder.vision_model.embeddings.table_side
        clip[1:] += 0.7 * sinusoids(side, clip.shape[1], longest=40).flatten(0, 1)
        for name, parameter in encoder.named_parameters():
            if "rel_pos" in name:
                nn.init.normal_(parameter, std=0.3)


def sinusoids(side: int, width: int, *, longest: float) -> torch.Tensor:
    """Return a 2-D sinusoidal position embedding.

    Args:
        side: number of rows, and of columns.
        width: size of each embedding; a multiple of 4.
        longest: the longest wavelength, in positions. The shortest is 4.

    Returns:
        [side, side, width]: sines and cosines of the column, followed by those of the row.
    """
    frequencies = 2 * math.pi * torch.exp(-torch.linspace(math.log(4), math.log(longest), width // 4))
    phases = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    one_axis = torch.cat([phases.sin(), phases.cos()], dim=1)
    return torch.cat([one_axis[None].expand(side, -1, -1), one_axis[:, None].expand(-1, side, -1)], dim=2)


class Decoder(nn.Module):
    """DeepSeek-V2 with standard multi-head attention: the first layer has a dense MLP, the others have experts."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        self.layer_inputs: list[torch.Tensor] = []
        """The input of each layer in the last call, [B, T, hidden]."""

    def forward(
        self,
        x: torch.Tensor,
        questions: Sequence[int] = (),
        cache: list[list[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Return the hidden states after the last layer, [B, T, hidden].

        Args:
            x: [B, T, hidden], the embedded tokens. If there is a cache, they follow the tokens in it.
            questions: lengths of the questions at the end of T. A token attends to everything before the first
                question, and to the preceding tokens of its own question.
            cache: for each layer an empty list, or its keys and values. They are updated.
        """
        start = cache[0][0].shape[2] if cache and cache[0] else 0
        common = x.shape[1] - sum(questions)
        positions = [*range(common), *(common + index for length in questions for index in range(length))]
        rotations = rotary_embedding(self.config, start + torch.tensor(positions, device=x.device))
        self.layer_inputs = []
        for number, layer in enumerate(self.layers):
            self.layer_inputs.append(x)
            x = layer(x, rotations, questions, None if cache is None else cache[number])
        out: torch.Tensor = self.norm(x)
        return out

    def balance(self) -> torch.Tensor:
        """Return the load-balancing loss of the experts in the last call; it is 1 if they are used evenly."""
        losses = [layer.mlp.balance for layer in self.layers if isinstance(layer.mlp, Experts)]
        return torch.stack(losses).mean()


class Layer(nn.Module):
    """A layer of the decoder: attention and an MLP, both with a residual connection."""

    def __init__(self, config: dict[str, Any], number: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)
        dense = number < config["first_k_dense_replace"]
        self.mlp = GatedMlp(hidden, config["intermediate_size"]) if dense else Experts(config)

    def forward(
        self, x: torch.Tensor, rotations: torch.Tensor, questions: Sequence[int], cache: list[torch.Tensor] | None
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotations, questions, cache)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Attention(nn.Module):
    """Multi-head self-attention with rotary position embeddings."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self, x: torch.Tensor, rotations: torch.Tensor, questions: Sequence[int], cache: list[torch.Tensor] | None
    ) -> torch.Tensor:
        batch, length, hidden = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rotations), rotate(k, rotations)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        y = attend(q, k, v, questions)
        out: torch.Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, hidden))
        return out


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, questions: Sequence[int]) -> torch.Tensor:
    """Return causal attention in which no question attends to another one.

    The part that all questions share is computed first, then each question by itself, because a single call with a mask
    would mostly compute scores that are masked out.

    Args:
        q: [B, heads, T, size]. The last `sum(questions)` tokens belong to the questions.
        k: [B, heads, T', size] with T' ≥ T; the additional keys precede the queries.
        v: the same shape as `k`.
        questions: lengths of the questions.
    """
    (shared_q, *own_q), (shared_k, *own_k), (shared_v, *own_v) = (
        each.split([each.shape[2] - sum(questions), *questions], dim=2) for each in (q, k, v)
    )
    parts = [causal(shared_q, shared_k, shared_v)]
    for queries, keys, values in zip(own_q, own_k, own_v, strict=True):
        parts.append(causal(queries, torch.cat([shared_k, keys], dim=2), torch.cat([shared_v, values], dim=2)))
    return torch.cat(parts, dim=2)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return causal attention.

    On a CPU it is computed by plain matrix products: forward and backward pass together take two thirds of the time of
    torch's `scaled_dot_product_attention`.

    Args:
        q: [B, heads, Q, size], the last Q of the K positions.
        k: [B, heads, K, size].
        v: [B, heads, K, size].
    """
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


class GatedMlp(nn.Module):
    """An MLP with a SiLU gate."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Experts(nn.Module):
    """A mixture of experts: for each token the top few by softmax score, not renormalized, and the shared experts.

    All experts are evaluated for every token, and those that are not chosen have a weight of zero. As the experts are
    narrow, this takes less time than sorting the tokens, and shapes are the same in every batch.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.used = config["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, config["n_routed_experts"], bias=False)
        self.experts = nn.ModuleList(GatedMlp(hidden, inner) for _ in range(config["n_routed_experts"]))
        self.shared_experts = GatedMlp(hidden, inner * config["n_shared_experts"])
        self.balance = torch.ones(())
        """The load-balancing loss of the last call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)
        scores = F.linear(tokens.float(), self.gate.weight.float()).softmax(-1)
        values, chosen = scores.topk(self.used, dim=-1)
        share = chosen.flatten().bincount(minlength=len(self.experts)).float() / chosen.numel()
        self.balance = len(self.experts) * (share * scores.mean(0)).sum()
        weights = torch.zeros_like(scores).scatter(1, chosen, values)
        weights = weights.repeat_interleave(self.experts[0].gate_proj.out_features, dim=1)
        gate = F.linear(tokens, torch.cat([expert.gate_proj.weight for expert in self.experts]))
        up = F.linear(tokens, torch.cat([expert.up_proj.weight for expert in self.experts]))
        inner = F.silu(gate) * up * weights.to(up.dtype)
        down = torch.cat([expert.down_proj.weight for expert in self.experts], dim=1)
        return (self.shared_experts(tokens) + F.linear(inner, down)).view_as(x)


def rotary_embedding(config: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Return the cosines and sines of the rotary position embedding.

    Args:
        config: the language config.
        positions: [T].

    Returns:
        [2, T, head size].
    """
    size = config["hidden_size"] // config["num_attention_heads"]
    frequencies = config["rope_theta"] ** (-torch.arange(0, size, 2, device=positions.device).float() / size)
    angles = positions.float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Apply the rotary position embedding.

    Args:
        x: [B, heads, T, head size].
        rotations: the result of `rotary_embedding`.
    """
    low, high = x.chunk(2, dim=-1)
    cosine, sine = rotations
    return (x * cosine + torch.cat([-high, low], dim=-1) * sine).to(x.dtype)
