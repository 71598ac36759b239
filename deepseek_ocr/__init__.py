"""DeepSeek-OCR as a vLLM plugin.

`register` is what vLLM calls in each of its processes (entry point group `vllm.general_plugins`).
"""

from __future__ import annotations

ARCHITECTURE = "DeepseekOCRForCausalLM"
MODEL_CLASS = "deepseek_ocr.model:DeepseekOCRForCausalLM"


def register() -> None:
    """Put our model class in the place of vLLM's own for the architecture `DeepseekOCRForCausalLM`.

    The class is named, not imported: vLLM imports it where it is needed.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, MODEL_CLASS)
