"""The implementations to compare with: vLLM's own preprocessing and n-gram guard for DeepSeek-OCR, unmodified."""

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
    """Provide the parts of torchvision that vLLM's preprocessing needs, if torchvision is not installed.

    PyPI has no build of torchvision for the CPU build of torch. While vLLM's modules are imported, the three classes
    below replace those of torchvision. They make the same torch calls.
    """
    if find_spec("torchvision") is not None:
        yield
        return
    import vllm.multimodal.processing  # noqa: F401

    transforms: Any = ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Normalize = Compose, ToTensor, Normalize
    torchvision: Any = ModuleType("torchvision")
    torchvision.transforms = transforms
    replacements = {"torchvision": torchvision, "torchvision.transforms": transforms}
    sys.modules |= replacements
    try:
        yield
    finally:
        for name in replacements:
            del sys.modules[name]


class ToTensor:
    """Replacement for `torchvision.transforms.ToTensor`, for RGB images."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        # The same steps as in torchvision: bytes → [C, H, W], contiguous, then floats from 0 to 1.
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        planes = pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
        return planes.to(torch.float32).div(255)


class Normalize:
    """Replacement for `torchvision.transforms.Normalize`."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._mean, self._std = mean, std

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(self._mean).view(-1, 1, 1)
        std = torch.tensor(self._std).view(-1, 1, 1)
        return tensor.clone().sub_(mean).div_(std)


class Compose:
    """Replacement for `torchvision.transforms.Compose`."""

    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self._steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self._steps:
            value = step(value)
        return value


def processor() -> Any:
    """Return vLLM's `DeepseekOCRProcessor` in its default mode (gundam)."""
    with torchvision_provided():
        from vllm.transformers_utils.processors.deepseek_ocr import DeepseekOCRProcessor
    from transformers import AutoTokenizer

    return DeepseekOCRProcessor(AutoTokenizer.from_pretrained(CHECKPOINT))


def guard() -> type[Any]:
    """Return vLLM's class `NGramPerReqLogitsProcessor`."""
    with torchvision_provided():
        from vllm.model_executor.models.deepseek_ocr import NGramPerReqLogitsProcessor

    processor: type[Any] = NGramPerReqLogitsProcessor
    return processor
