"""DeepSeek-OCR as a vLLM plugin.

`register` is what vLLM calls in each of its processes (entry point group `vllm.general_plugins`).
"""

from __future__ import annotations

from deepseek_ocr.families import FAMILIES


def register() -> None:
    """Replace vLLM's own model classes for our architectures by ours.

    Classes are registered by name, so that vLLM imports them only where they are needed.
    """
    from vllm import ModelRegistry

    for family in FAMILIES.values():
        ModelRegistry.register_model(family.architecture, family.model_class)
