"""What is compared with: vLLM's own preprocessing and guard for DeepSeek-OCR, as they stand in vLLM."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

CHECKPOINT = Path(__file__).parents[1] / "nano" / "checkpoint"


@contextmanager
def torchvision_provided() -> Iterator[None]:
    """vLLM's preprocessing needs three functions of torchvision, which has no build for a CPU's torch on PyPI. Where it
    is missing, these stand in while vLLM's modules are imported: the same arithmetic with the same torch calls."""
    if find_spec("torchvision") is not None:
        yield
        return
    import vllm.multimodal.processing  # noqa: F401

    transforms: Any = ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Normalize = Compose, ToTensor, Normalize
    torchvision: Any = ModuleType("torchvision")
    torchvision.transforms = transforms
    stand_ins = {"torchvision": torchvision, "torchvision.transforms": transforms}
    sys.modules |= stand_ins
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class ToTensor:
    def __call__(self, picture: Image.Image) -> torch.Tensor:
        # As torchvision does it: bytes → [C, H, W], contiguous, then floats from 0 to 1.
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        planes = pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()
        return planes.to(torch.float32).div(255)


class Normalize:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._mean, self._std = mean, std

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(self._mean).view(-1, 1, 1)
        std = torch.tensor(self._std).view(-1, 1, 1)
        return tensor.clone().sub_(mean).div_(std)


class Compose:
    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self._steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self._steps:
            value = step(value)
        return value


def processor() -> Any:
    """vLLM's `DeepseekOCRProcessor`, in the default mode (gundam)."""
    with torchvision_provided():
        from vllm.transformers_utils.processors.deepseek_ocr import DeepseekOCRProcessor
    from transformers import AutoTokenizer

    return DeepseekOCRProcessor(AutoTokenizer.from_pretrained(CHECKPOINT))


def guard() -> type[Any]:
    """vLLM's `NGramPerReqLogitsProcessor`."""
    with torchvision_provided():
        from vllm.model_executor.models.deepseek_ocr import NGramPerReqLogitsProcessor

    processor: type[Any] = NGramPerReqLogitsProcessor
    return processor
