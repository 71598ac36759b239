"""vLLM's processor for the model: options, placeholders, and the input for profiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ocr_builders import noisy_picture, smooth_picture
from PIL import Image
from vllm import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY

import deepseek_ocr
from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES
from deepseek_ocr.processor import Processor

pytestmark = pytest.mark.engine

CHECKPOINT = Path(__file__).parents[2] / "nano" / "checkpoint"
IMAGE_TOKEN = 3
CONTEXT = 8192


def make_processor(**settings: Any) -> Processor:
    deepseek_ocr.register()
    args = EngineArgs(str(CHECKPOINT), max_model_len=CONTEXT, limit_mm_per_prompt={"image": 4}, **settings)
    processor = MULTIMODAL_REGISTRY.create_processor(args.create_model_config())
    assert isinstance(processor, Processor)
    return processor


@pytest.fixture(scope="module")
def processor() -> Processor:
    return make_processor()


def process(processor: Processor, images: list[Any], **options: Any) -> Any:
    items = processor.info.parse_mm_data({"image": images})
    return processor("<image>" * len(images) + "\nFree OCR.", items, hf_processor_mm_kwargs=options)


def placeholder_counts(result: Any) -> list[int]:
    return [place.length for place in result["mm_placeholders"]["image"]]


def tensors(result: Any) -> list[dict[str, torch.Tensor]]:
    return [item.get_data() for item in result["mm_kwargs"]["image"]]


class TestOptions:
    @pytest.mark.parametrize("name", MODES)
    def test_a_mode_by_name(self, processor: Processor, name: str) -> None:
        assert processor.info.mode({"mode": name}) == MODES[name]

    def test_gundam_is_the_default(self, processor: Processor) -> None:
        assert processor.info.mode({}) == MODES["gundam"]

    def test_fields_over_a_mode(self, processor: Processor) -> None:
        assert processor.info.mode({"mode": "gundam-m", "max_crops": 9}).max_crops == 9
        assert processor.info.mode({"mode": "gundam-m", "max_crops": 9}).base_size == 1280

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "huge"}, "mode must be one of tiny, small, base, large, gundam, gundam-m, not 'huge'"),
            ({"mode": None}, "mode must be one of"),
            ({"base_size": 1000}, "base_size must "),
            ({"mode": "tiny", "crop": True}, "crop is not a field"),
        ],
    )
    def test_wrong_options_are_named(self, processor: Processor, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            processor.info.mode(options)
        with pytest.raises(ValueError, match=message):
            process(processor, [noisy_picture(8, 8)], **options)

    def test_the_engines_options_are_defaults_for_requests(self) -> None:
        engine = make_processor(mm_processor_kwargs={"mode": "tiny"})
        assert engine.info.mode({}) == MODES["tiny"]
        assert engine.info.mode({"mode": "base"}) == MODES["base"]
        assert placeholder_counts(process(engine, [noisy_picture(900, 900)])) == [73]


class TestPlaceholders:
    def test_each_picture_gets_its_own_number(self, processor: Processor) -> None:
        pictures = [smooth_picture(1240, 1754), noisy_picture(300, 200), noisy_picture(700, 641)]
        result = process(processor, pictures)
        counts = placeholder_counts(result)
        assert counts == [903, 273, 273 + 20 * 21]
        ids = result["prompt_token_ids"]
        assert ids[0] == 0
        assert ids[1 : 1 + sum(counts)] == [IMAGE_TOKEN] * sum(counts)
        assert IMAGE_TOKEN not in ids[1 + sum(counts) :]
        assert ids.count(0) == 1
        offsets = [place.offset for place in result["mm_placeholders"]["image"]]
        assert offsets == [1, 1 + 903, 1 + 903 + 273]

    def test_the_tensors_are_the_prepared_ones(self, processor: Processor) -> None:
        pictures = [smooth_picture(500, 800), noisy_picture(300, 200)]
        for ours, picture in zip(tensors(process(processor, pictures)), pictures, strict=True):
            expected = prepare_image(picture, MODES["gundam"])
            assert torch.equal(ours["global_view"], expected.global_view)
            assert torch.equal(ours["tiles"], expected.tiles)
            assert tuple(ours["crop_grid"].tolist()) == expected.grid

    def test_prepared_pictures_are_used_as_they_are(self, processor: Processor) -> None:
        """In whatever mode they were prepared, and mixed with pictures that are not prepared."""
        tiny = prepare_image(noisy_picture(900, 900), MODES["tiny"])
        large = prepare_image(noisy_picture(900, 900), MODES["gundam-m"])
        result = process(processor, [tiny, noisy_picture(100, 100), large], mode="small")
        assert placeholder_counts(result) == [73, 111, 421]
        first, _, last = tensors(result)
        assert torch.equal(first["global_view"], tiny.global_view)
        assert torch.equal(last["global_view"], large.global_view)
        assert placeholder_counts(process(processor, [tiny])) == [73]

    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
    def test_a_picture_as_an_array(self, processor: Processor, axes: tuple[int, int, int]) -> None:
        picture = noisy_picture(90, 50)
        array = np.asarray(picture).transpose(axes)
        (ours,) = tensors(process(processor, [array]))
        (expected,) = tensors(process(processor, [picture]))
        assert torch.equal(ours["global_view"], expected["global_view"])

    @pytest.mark.parametrize(
        "array", [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 1), np.uint8)]
    )
    def test_an_array_that_is_not_a_picture(self, processor: Processor, array: np.ndarray) -> None:
        with pytest.raises(ValueError, match="uint8 with three channels"):
            process(processor, [array])


class TestProfiling:
    def test_the_most_expensive_picture_is_profiled(self, processor: Processor) -> None:
        most = processor.info.get_mm_max_tokens_per_item(CONTEXT, {"image": 1})
        assert most == {"image": 4201}  # 9 tiles of 1280 pixels in a column
        inputs = processor.get_dummy_inputs(CONTEXT, {"image": 2}, {})
        result = processor(inputs.prompt, inputs.mm_data_items, hf_processor_mm_kwargs=inputs.hf_processor_mm_kwargs)
        assert placeholder_counts(result) == [4201, 4201]


def test_a_foreign_tokenizer_is_named(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        @staticmethod
        def get_vocab() -> dict[str, int]:
            return {"a": 0}

    monkeypatch.setattr(processor.info, "get_tokenizer", Foreign)
    with pytest.raises(ValueError, match="tokenizer has no <image> token"):
        processor([0, 3, 4], processor.info.parse_mm_data({"image": [Image.new("RGB", (9, 9))]}))
