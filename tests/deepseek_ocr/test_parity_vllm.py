"""The whole model in vLLM, compared with transformers' modules on a small random checkpoint in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ocr_builders import noisy_picture, random_checkpoint, smooth_picture
from ocr_oracles import ModelOracle
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.is_available(), reason="needs fp32, as in vLLM's build for the CPU"),
]

NANO = Path(__file__).parents[2] / "nano" / "checkpoint"
STEPS = 16
IMAGE_TOKEN = 3
SMALL_VIEWS = {"base_size": 256, "image_size": 192}


@dataclass(frozen=True)
class Case:
    name: str
    pictures: tuple[Image.Image, ...]
    options: dict[str, Any]
    text: str = "\nFree OCR."
    prepared: bool = False


CASES = [
    Case("no tiles", (smooth_picture(150, 190),), SMALL_VIEWS),
    Case("tiles", (smooth_picture(400, 570),), SMALL_VIEWS),
    Case("tiles, prepared before the engine", (smooth_picture(400, 570),), SMALL_VIEWS, prepared=True),
    Case("two pictures, one cut", (noisy_picture(600, 220), noisy_picture(90, 100)), SMALL_VIEWS),
    Case("a size with rounding", (noisy_picture(300, 300),), {"base_size": 208, "image_size": 144, "max_crops": 9}),
    Case("a named mode", (smooth_picture(300, 200),), {"mode": "tiny"}, text="\n<|grounding|>OCR this image."),
]


def small_config() -> dict[str, Any]:
    """Return a config with every kind of layer: SAM with and without windows, the decoder with and without experts."""
    config: dict[str, Any] = json.loads((NANO / "config.json").read_text())
    config["vision_config"]["width"] = {
        "sam_vit_b": {
            "width": 48,
            "layers": 3,
            "heads": 3,
            "global_attn_indexes": [1],
            "window_size": 7,
            "neck": 24,
            "downsample_channels": [32, 64],
        },
        "clip-l-14-224": {"width": 64, "layers": 2, "heads": 4, "image_size": 224, "patch_size": 14},
    }
    config["projector_config"] |= {"input_dim": 128, "n_embed": 128}
    config["language_config"] |= {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
    }
    return config


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_checkpoint(small_config())


@pytest.fixture(scope="module")
def answers(
    state: dict[str, torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
    vllm_process: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(small_config() | {"torch_dtype": "float32"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    requests = []
    for number, case in enumerate(CASES):
        paths = [folder / f"{number}-{place}.png" for place in range(len(case.pictures))]
        for path, picture in zip(paths, case.pictures, strict=True):
            picture.save(path)
        requests.append(
            {
                "prompt": "<image>" * len(paths) + case.text,
                "pictures": list(map(str, paths)),
                "options": case.options,
                "prepared": case.prepared,
            }
        )
    result = vllm_process("generate", {"checkpoint": str(folder), "requests": requests, "steps": STEPS})
    assert result["model"] == "deepseek_ocr.model", "the plugin's model was not used"
    return {case.name: answer for case, answer in zip(CASES, result["answers"], strict=True)}


@pytest.fixture(scope="module")
def oracle(state: dict[str, torch.Tensor]) -> ModelOracle:
    return ModelOracle(small_config(), state)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_and_probabilities(case: Case, answers: dict[str, dict[str, Any]], oracle: ModelOracle) -> None:
    answer = answers[case.name]
    options = dict(case.options)
    mode = MODES[options.pop("mode", "gundam")].with_changes(options)
    prepared = [prepare_image(picture, mode) for picture in case.pictures]

    tokens = Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(case.text, add_special_tokens=False).ids
    prompt = [0, *[IMAGE_TOKEN for picture in prepared for _ in range(picture.num_tokens)], *tokens]
    assert answer["prompt_ids"] == prompt

    with torch.inference_mode():
        pictures = [oracle.encoder.embed(p.global_view, p.tiles, *p.grid) for p in prepared]
        ids, scores = oracle.greedy(prompt, IMAGE_TOKEN, pictures, STEPS)
    assert answer["ids"] == ids
    ours = torch.tensor(answer["logprobs"])
    assert scores.std() > 0.3, "a flat distribution would hide differences"
    torch.testing.assert_close(ours, scores, rtol=0, atol=1e-4)


def test_the_number_of_placeholders_of_each_case(answers: dict[str, dict[str, Any]]) -> None:
    def picture_tokens(name: str) -> int:
        return answers[name]["prompt_ids"].count(IMAGE_TOKEN)

    assert picture_tokens("no tiles") == 4 * 5 + 1
    assert picture_tokens("tiles") == 4 * 5 + 1 + 9 * (6 + 1)
    assert picture_tokens("two pictures, one cut") == 2 * (4 * 5 + 1) + 3 * (9 + 1)
    assert picture_tokens("a size with rounding") == 4 * 5 + 1 + 6 * (6 + 1)
    assert picture_tokens("a named mode") == 73
    assert answers["tiles"] == answers["tiles, prepared before the engine"]
