"""DeepSeek-OCR as a vLLM plugin.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`).
"""

from __future__ import annotations

from deepseek_ocr.families import FAMILIES


def register() -> None:
    """Replace vLLM's model classes for our architectures with ours.

    Classes are registered by name, so that vLLM imports them only in the processes that need them.
    """
    from vllm import ModelRegistry

    for family in FAMILIES.values():
        ModelRegistry.register_model(family.architecture, family.model_class)
