"""The table of model families, and how a model's family is found before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.families import DEEPSEEK_OCR, FAMILIES, family_of, mode_name
from deepseek_ocr.modes import MODES, ResolutionMode


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_is_consistent(architecture: str) -> None:
    family = FAMILIES[architecture]
    assert family.architecture == architecture
    assert set(family.retry_modes) <= set(family.modes)
    assert family.figure_label in family.labels
    assert family.image_token not in family.prompt_tokens
    assert "text" in family.prompts["locate"]
    assert family.model_class.count(":") == 1


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-OCR", "somebody/unknown", "/no/such/folder"])
def test_a_model_that_is_not_here_yet(model: str) -> None:
    assert family_of(model) is DEEPSEEK_OCR


@pytest.mark.parametrize("config", ["", "[]", "{}", {"architectures": []}, {"architectures": ["Unknown"]}])
def test_a_folder_whose_config_says_nothing_useful(tmp_path: Path, config: Any) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert family_of(str(tmp_path)) is DEEPSEEK_OCR


def test_a_folder_whose_config_names_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [DEEPSEEK_OCR.architecture]}))
    assert family_of(str(tmp_path)) is DEEPSEEK_OCR


def test_names_of_modes() -> None:
    assert {name: mode_name(mode) for name, mode in MODES.items()} == {name: name for name in MODES}
    assert mode_name(ResolutionMode(base_size=80)) is None
