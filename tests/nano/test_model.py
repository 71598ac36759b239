"""The model as it is trained: the published layout, and the same results with and without the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from deepseek_ocr.encoder.deep_encoder import Views
from deepseek_ocr.layout import published_layout
from deepseek_ocr.modes import NO_TILES
from nano.model import CONFIG, NanoOcr
from nano.tokenizer import SPECIAL, save

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> NanoOcr:
    torch.manual_seed(0)
    return NanoOcr().eval()


def test_state_has_the_published_names_and_shapes(model: NanoOcr) -> None:
    written = model.state()
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == published_layout(CONFIG)
    assert sum(2 * tensor.numel() for tensor in written.values()) < 25e6


def test_generation_with_the_cache_agrees_with_one_forward_pass(model: NanoOcr) -> None:
    view = torch.randint(0, 255, (128, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        images = model.embed([Views(view, torch.empty(0, 0, 0, 3, dtype=torch.uint8), NO_TILES)])
        prompt = torch.tensor([20, 30, 40])
        (answer,) = model.read(images, prompt, most=12)
        logits = model(images, torch.tensor([[*prompt.tolist(), *answer]]))
    assert answer
    assert logits[0, 2:-1].argmax(-1).tolist() == answer


def test_questions_in_one_row_do_not_influence_each_other(model: NanoOcr) -> None:
    view = torch.randint(0, 255, (128, 128, 3), dtype=torch.uint8)
    questions = [torch.randint(0, 300, (length,)) for length in (5, 9, 3)]
    with torch.no_grad():
        images = model.embed([Views(view, torch.empty(0, 0, 0, 3, dtype=torch.uint8), NO_TILES)])
        together = model(images, torch.cat(questions)[None], [5, 9, 3])
        alone = torch.cat([model(images, each[None]) for each in questions], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_bf16_autocast_gives_nearly_the_same_logits(model: NanoOcr) -> None:
    view = torch.randint(0, 255, (128, 128, 3), dtype=torch.uint8)
    tokens = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        images = model.embed([Views(view, torch.empty(0, 0, 0, 3, dtype=torch.uint8), NO_TILES)])
        exact = model(images, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images, tokens)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_tokenizer_round_trip_preserves_text(tmp_path: Path) -> None:
    save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "\nFree OCR. <td>12 €</td>  é漢\t"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert max(ids) < CONFIG["language_config"]["vocab_size"]
