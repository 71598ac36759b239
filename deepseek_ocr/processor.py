"""vLLM's multimodal processor for DeepSeek-OCR: turns pictures into tensors and placeholders.

It accepts a `PreparedImage`, made in the caller's threads, or any picture that vLLM accepts, which it then prepares
itself (so that plain `vllm serve` works). The placeholders are counted from the tensors that the encoder gets, so that
the two always agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from deepseek_ocr.families import DEEPSEEK_OCR
from deepseek_ocr.images import PreparedImage, prepare_image
from deepseek_ocr.modes import MODES, CropGrid, ResolutionMode, most_expensive_mode, view_tokens

IMAGE_TOKEN = DEEPSEEK_OCR.image_token
DEFAULT_MODE = "gundam"


class ProcessingInfo(BaseProcessingInfo):
    """Limits, options and special tokens."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.largest_mode().max_vision_tokens()}

    def largest_mode(self) -> ResolutionMode:
        """Return the mode that the engine is profiled with: the most expensive one that a request may ask for."""
        return most_expensive_mode(self.ctx.model_config.max_model_len - 1)

    def mode(self, options: Mapping[str, object]) -> ResolutionMode:
        """Return the mode of a request.

        Args:
            options: The request's `mm_processor_kwargs`, which override the engine's: `mode` (a name) and the fields
                of `ResolutionMode`.

        Raises:
            ValueError: An option is unknown, or its value is not allowed.
        """
        merged: dict[str, Any] = dict(self.ctx.get_merged_mm_kwargs(options))
        name = merged.pop("mode", DEFAULT_MODE)
        if name not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {name!r}")
        return MODES[name].with_changes(merged)

    @property
    def image_token_id(self) -> int:
        token_id = self.get_tokenizer().get_vocab().get(IMAGE_TOKEN)
        if token_id is None:
            raise ValueError(f"this is not a DeepSeek-OCR checkpoint: its tokenizer has no {IMAGE_TOKEN} token")
        return int(token_id)


class DummyInputsBuilder(BaseDummyInputsBuilder[ProcessingInfo]):
    """Makes the largest input, for profiling."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> MultiModalDataDict:
        mode = self.info.largest_mode()
        grid = mode.largest_grid()
        width, height = mode.image_size * grid.wide, mode.image_size * grid.tall
        images = self._get_dummy_images(width=width, height=height, num_images=mm_counts.get("image", 0))
        data: MultiModalDataDict = {"image": images}
        return data


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Prepares pictures and inserts their placeholders into the prompt."""

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> ProcessorInputs:
        """Return the dummy pictures with the mode that needs the most tokens for them."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        inputs.hf_processor_mm_kwargs = asdict(self.info.largest_mode())
        return inputs

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Prepare the pictures. There is no Hugging Face processor."""
        images: Any = hf_data["images"]
        mode = self.info.mode(hf_kwargs)
        prepared = [
            image if isinstance(image, PreparedImage) else prepare_image(_pixels(image), mode) for image in images
        ]
        return BatchFeature(
            {
                "global_view": [image.global_view for image in prepared],
                "tiles": [image.tiles for image in prepared],
                "crop_grid": torch.tensor([image.grid for image in prepared], dtype=torch.int64),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "global_view": MultiModalFieldConfig.batched("image"),
            "tiles": MultiModalFieldConfig.batched("image"),
            "crop_grid": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        token_id = self.info.image_token_id

        def placeholders(index: int) -> list[int]:
            data = out_mm_kwargs["image"][index].get_data()
            grid = CropGrid(*data["crop_grid"].tolist())
            return [token_id] * view_tokens(data["global_view"].shape[0], data["tiles"].shape[1], grid)

        return [PromptReplacement(modality="image", target=[token_id], replacement=placeholders)]


def _pixels(image: object) -> Image.Image | npt.NDArray[np.uint8]:
    """Return an image as pixels. vLLM also accepts arrays, [H, W, 3] or [3, H, W]."""
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image array must be uint8 with three channels, not {array.dtype} {list(array.shape)}")
    return array
