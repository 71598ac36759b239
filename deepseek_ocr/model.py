"""The model that vLLM runs: our DeepEncoder and vLLM's DeepSeek-V2 decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors
from vllm.utils.torch_utils import set_default_torch_dtype

from deepseek_ocr.encoder import DeepEncoder, EncoderConfig
from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.layout import checked, published_layout
from deepseek_ocr.modes import CropGrid
from deepseek_ocr.processor import DummyInputsBuilder, ProcessingInfo, Processor


def encoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which the encoder computes: `dtype`, but fp32 on x86 CPUs that only emulate bf16.

    On these, fp32 took 33 to 41% of the time of bf16 (2 cores, views of 640 and 1024 pixels).
    """
    if dtype == torch.bfloat16 and current_platform.is_cpu():
        abilities = torch.cpu.get_capabilities()
        if abilities.get("architecture") == "x86_64" and not abilities.get("avx512_bf16"):
            return torch.float32
    return dtype


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputsBuilder)
class DeepseekOCRForCausalLM(nn.Module, SupportsMultiModal, SupportsPP):
    """The architecture `DeepseekOCRForCausalLM`. Replaces vLLM's own class of that name."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.embed_tokens.": "language_model.model.embed_tokens.",
            "model.layers.": "language_model.model.layers.",
            "model.norm.": "language_model.model.norm.",
            "lm_head.": "language_model.lm_head.",
            "model.": "encoder.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality != "image":
            raise ValueError(f"DeepSeek-OCR reads images only, not {modality}")
        return DEEPSEEK_OCR.image_token

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.quantized = vllm_config.quant_config is not None
        encoder_config = EncoderConfig.from_checkpoint(
            config.vision_config.to_dict(), config.projector_config.to_dict()
        )
        self.dtype = vllm_config.model_config.dtype
        with self._mark_tower_model(vllm_config, "image"), set_default_torch_dtype(encoder_dtype(self.dtype)):
            self.encoder = DeepEncoder(encoder_config)
        with self._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings | None:
        """Return the embeddings of every picture of the step in order, each [tokens, hidden].

        vLLM passes a field as a single tensor if it has the same shape for all pictures, otherwise as a list.
        """
        if "global_view" not in kwargs:
            return None
        pictures = [
            Views(global_view, tiles, CropGrid(*grid.tolist()))
            for global_view, tiles, grid in zip(
                kwargs["global_view"], kwargs["tiles"], kwargs["crop_grid"], strict=True
            )
        ]
        return [embedding.to(self.dtype) for embedding in self.encoder.embed(pictures)]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is not None:  # later pipeline stages get hidden states instead
            inputs_embeds = None
        hidden: torch.Tensor | IntermediateTensors = self.language_model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits: torch.Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors with the published names, and return the names of the parameters that were loaded.

        Raises:
            ValueError: A tensor of an unquantised checkpoint is missing or unexpected, or has the wrong shape.
        """
        if not self.quantized:  # quantised checkpoints have scales and other shapes
            config = self.config
            layout = published_layout(
                {
                    "language_config": config.text_config.to_dict(),
                    "vision_config": config.vision_config.to_dict(),
                    "projector_config": config.projector_config.to_dict(),
                }
            )
            weights = checked(weights, layout)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="encoder.projector",
            tower_model=["encoder.sam_model", "encoder.vision_model"],
        )
