"""Loading with vLLM: the published names and sizes, and the errors of damaged checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from ocr_builders import checkpoint_shapes
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.is_available(), reason="needs vLLM's build for the CPU"),
]

NANO = Path(__file__).parents[2] / "nano" / "checkpoint"

SPECIAL_TOKENS = {
    0: "<｜begin▁of▁sentence｜>",
    1: "<｜end▁of▁sentence｜>",
    2: "<｜▁pad▁｜>",
    **dict(
        enumerate(
            [
                "<image>",
                "<|ref|>",
                "<|/ref|>",
                "<|det|>",
                "<|/det|>",
                "<|grounding|>",
                "<td>",
                "</td>",
                "<tr>",
                "</tr>",
            ],
            start=128815,
        )
    ),
}


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of `size` words, with the published special tokens at their ids."""
    words = {SPECIAL_TOKENS.get(token, f"w{token}"): token for token in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL_TOKENS.values()])
    assert all(tokenizer.token_to_id(word) == token for token, word in SPECIAL_TOKENS.items())
    begin = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": SPECIAL_TOKENS[1],
        "pad_token": SPECIAL_TOKENS[2],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_sparse_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Write a sparse safetensors file of bf16 zeros, and return the number of bytes of the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def a_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


MISSING = "model.layers.2.mlp.experts.5.down_proj.weight"
MISSHAPEN = "model.sam_model.blocks.1.attn.rel_pos_h"


def faults(whole: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of the embedded checkpoint, once whole and otherwise with one fault."""
    return {
        "whole": whole,
        "missing": {name: tensor for name, tensor in whole.items() if name != MISSING},
        "no vision": {name: tensor for name, tensor in whole.items() if "sam_model" not in name},
        "unexpected": whole | {"model.layers.9.self_attn.q_proj.weight": torch.zeros(2, 2)},
        "misshapen": whole | {MISSHAPEN: torch.zeros(27, 32)},
        "misshapen expert": whole | {MISSING: torch.zeros(8, 8)},
        "misspelt as English has it": {
            name.replace("view_seperator", "view_separator"): tensor for name, tensor in whole.items()
        },
    }


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
    published_config: dict[str, Any],
    vllm_process: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The result of loading each checkpoint, all in one process."""
    folders = {}
    for name, tensors in faults(load_file(NANO / "model.safetensors")).items():
        folders[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(NANO / file, folders[name])
        save_file(tensors, folders[name] / "model.safetensors", metadata={"format": "pt"})

    folder = folders["published"] = tmp_path_factory.mktemp("published")
    (folder / "config.json").write_text(json.dumps(published_config))
    write_tokenizer(folder, published_config["vocab_size"])
    weights = write_sparse_weights(folder / "model.safetensors", checkpoint_shapes(published_config))
    assert weights == 6_672_212_480

    job = {"checkpoints": [str(folder) for folder in folders.values()], "port": a_free_port()}
    return dict(zip(folders, vllm_process("load", job)["results"], strict=True))


def read_parameters(config: dict[str, Any]) -> int:
    """Return the number of parameters without CLIP's patch embedding, which is not used."""
    shapes = checkpoint_shapes(config)
    del shapes["model.vision_model.embeddings.patch_embedding.weight"]
    return sum(map(prod, shapes.values()))


def test_every_parameter_of_the_published_model_is_loaded(
    results: dict[str, dict[str, Any]], published_config: dict[str, Any]
) -> None:
    assert read_parameters(published_config) == 3_336_106_240 - 1024 * 3 * 14 * 14
    assert results["published"] == {
        "model": "deepseek_ocr.model",
        "parameters": read_parameters(published_config),
        "untouched": [],
    }


def test_every_parameter_of_the_embedded_checkpoint_is_loaded(results: dict[str, dict[str, Any]]) -> None:
    config = json.loads((NANO / "config.json").read_text())
    expected = {"model": "deepseek_ocr.model", "parameters": read_parameters(config), "untouched": []}
    assert results["whole"] == expected


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", rf"is missing 1 tensor: {re.escape(MISSING)}$"),
        ("no vision", r"is missing \d+ tensors: model\.sam_model\..* and \d+ more$"),
        ("unexpected", r"has an unexpected tensor: model\.layers\.9\.self_attn\.q_proj\.weight$"),
        ("misshapen", rf"{re.escape(MISSHAPEN)} has shape \[27, 32\].* must be \[15, 64\]$"),
        ("misshapen expert", rf"{re.escape(MISSING)} has shape \[8, 8\].* must be \[256, 96\]$"),
        ("misspelt as English has it", r"has an unexpected tensor: model\.view_separator$"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(fault: str, message: str, results: dict[str, dict[str, Any]]) -> None:
    assert re.search(message, results[fault]["error"])
