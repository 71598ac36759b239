"""Run vLLM's own API server with the same checkpoint, to compare it with ours.

    python -m bench.vllm_server --port 8001 [--in-tree]

With `--in-tree`, images are preprocessed by vLLM's own code for DeepSeek-OCR instead of our plugin. The model is ours
in both cases, because vLLM's own cannot load checkpoints of a size other than the published one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.upstream import CHECKPOINT, torchvision_provided
from config import Settings
from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.model import DeepseekOCRForCausalLM
from deepseek_ocr.modes import CropGrid
from ocr_server.engine.environment import set_up

IN_TREE = "BENCH_IN_TREE"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ '\\n' + part.text }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


class InTreePreprocessing(DeepseekOCRForCausalLM):
    """Our model with vLLM's preprocessing, whose floats are converted back to bytes."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        if "pixel_values" not in kwargs:
            return None
        crops, start, images = kwargs["images_crop"], 0, []
        for global_view, grid in zip(kwargs["pixel_values"], kwargs["images_spatial_crop"], strict=True):
            crop_grid = CropGrid(*grid.tolist())
            tiles = crops[start : start + crop_grid.tiles]
            start += crop_grid.tiles
            images.append(Views(_bytes(global_view[None])[0], _bytes(tiles), crop_grid))
        return [embedding.to(self.dtype) for embedding in self.encoder.embed(images)]


def _bytes(planes: torch.Tensor) -> torch.Tensor:
    """Convert [N, 3, H, W] from -1 to 1 to uint8 [N, H, W, 3]."""
    return ((planes.float() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def register_in_tree() -> None:
    """Register the model with vLLM's preprocessing."""
    os.environ["VLLM_PLUGINS"] = ""  # otherwise, our plugin would register its own preprocessing again
    from vllm import ModelRegistry

    with torchvision_provided():
        from vllm.model_executor.models import deepseek_ocr as upstream
    from vllm.multimodal import MULTIMODAL_REGISTRY

    MULTIMODAL_REGISTRY.register_processor(
        upstream.DeepseekOCRMultiModalProcessor,
        info=upstream.DeepseekOCRProcessingInfo,
        dummy_inputs=upstream.DeepseekOCRDummyInputsBuilder,
    )(InTreePreprocessing)
    ModelRegistry.register_model("DeepseekOCRForCausalLM", InTreePreprocessing)


if os.environ.get(IN_TREE):  # also in the processes of the engine, which import this module again
    register_in_tree()


def main() -> None:
    set_up(Settings())  # the same environment for the engine: memory, cores
    if "--in-tree" in sys.argv:
        sys.argv.remove("--in-tree")
        os.environ[IN_TREE] = "1"
        register_in_tree()
    template = Path(tempfile.mkdtemp()) / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    sys.argv[1:] += [
        *("--model", str(CHECKPOINT), "--served-model-name", "deepseek-ocr", "--dtype", "bfloat16"),
        *("--chat-template", str(template), "--chat-template-content-format", "openai"),
        *("--max-model-len", "8192", "--max-num-seqs", "100", "--enforce-eager"),
        *("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0", "--skip-mm-profiling"),
        *("--limit-mm-per-prompt", '{"image": 1}'),
        *("--logits-processors", "deepseek_ocr.no_repeat_ngram:NoRepeatNGramV1"),
        *("--trust-request-mm-kwargs", "--no-enable-log-requests"),
    ]
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    serve()


if __name__ == "__main__":
    main()
