"""Names of the model: its own, aliases, and either with a mode and an output."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from config import Settings
from deepseek_ocr.modes import MODES
from ocr_server.dialects.model_names import MAX_MODEL_CHARS, ModelChoice, model_choice
from ocr_server.errors import NotFound
from tests.ocr_server.conftest import CHAT, WHITE, chat, error_of, message, picture


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **values})


@pytest.mark.parametrize(
    "model",
    [
        "deepseek-ocr",
        "deepseek-ai/DeepSeek-OCR",
        "DeepSeek-OCR",
        "deepseek-ocr:latest",
        "deepseek-ocr:3b",
        "mistral-ocr-latest",
        "mistral-ocr-2505",
    ],
)
class TestNames:
    def test_a_name_alone(self, settings: Settings, model: str) -> None:
        assert model_choice(model, settings) == ModelChoice()

    @pytest.mark.parametrize(
        ("suffix", "mode", "output"),
        [
            (":base", "base", None),
            (":markdown", None, "markdown"),
            (":base:markdown", "base", "markdown"),
            (":raw:tiny", "tiny", "raw"),
        ],
    )
    def test_suffixes_combine(
        self, settings: Settings, model: str, suffix: str, mode: str | None, output: str | None
    ) -> None:
        assert model_choice(model + suffix, settings) == ModelChoice(mode, MODES[mode] if mode else None, output)

    @pytest.mark.parametrize(
        "suffix", [":huge", ":overlay", ":", ":base:base", ":base:tiny", ":raw:blocks", "-v2", "/"]
    )
    def test_other_suffixes_are_unknown(self, settings: Settings, model: str, suffix: str) -> None:
        if model.startswith("mistral-ocr-"):
            pytest.skip("its alias ends in any text")
        with pytest.raises(NotFound):
            model_choice(model + suffix, settings)

    async def test_the_answer_names_it_as_it_was_asked_for(self, client: httpx.AsyncClient, model: str) -> None:
        answer = await client.post(CHAT, json=chat(message(picture()), model=model))
        assert answer.json()["model"] == model
        answer = await client.post("/v1/ocr", json={"model": model, "document": {"image_url": WHITE}})
        assert answer.json()["model"] == model

    async def test_it_can_be_retrieved(self, client: httpx.AsyncClient, model: str) -> None:
        answer = (await client.get(f"/v1/models/{model}:tiny:markdown")).json()
        assert (answer["id"], answer["mode"], answer["output"]) == (f"{model}:tiny:markdown", "tiny", "markdown")
        assert answer["max_vision_tokens"] == MODES["tiny"].max_vision_tokens()


@pytest.mark.parametrize(
    "model", ["", "gpt-4o", "ocr", "xdeepseek-ocr", "deepseek-ai/DeepSeek-VL", ":base", "my-mistral-ocr-1"]
)
async def test_other_names_are_unknown(client: httpx.AsyncClient, settings: Settings, model: str) -> None:
    with pytest.raises(NotFound):
        model_choice(model, settings)
    error = error_of(await client.post(CHAT, json=chat(model=model)), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    if model:
        error_of(await client.get(f"/v1/models/{model}"), 404)


class TestAliases:
    def test_they_are_a_setting(self, settings: Settings) -> None:
        own = changed(settings, MODEL_NAME="reader", MODEL_ALIASES="gpt-*, Scan:v1")
        for model in "reader", "gpt-4o", "gpt-4o:base", "scan:V1", "scan:v1:markdown":
            model_choice(model, own)
        for model in "deepseek-ocr", "deepseek-ai/DeepSeek-OCR", "gpt", "scan", "scan:v2":
            with pytest.raises(NotFound):
                model_choice(model, own)

    def test_none(self, settings: Settings) -> None:
        with pytest.raises(NotFound):
            model_choice("deepseek-ai/DeepSeek-OCR", changed(settings, MODEL_ALIASES=""))

    @pytest.mark.parametrize("model", ["gpt-4o", "anything at all", "a:b:c", "x\ny"])
    def test_any_name(self, settings: Settings, model: str) -> None:
        every = changed(settings, MODEL_ALIASES="*")
        assert model_choice(model, every) == ModelChoice()
        assert model_choice(f"{model}:tiny", every).mode == MODES["tiny"]

    def test_the_answer_repeats_no_long_name(self, settings: Settings) -> None:
        every = changed(settings, MODEL_ALIASES="*")
        model_choice("x" * MAX_MODEL_CHARS, every)
        with pytest.raises(NotFound):
            model_choice("x" * (MAX_MODEL_CHARS + 1), every)
