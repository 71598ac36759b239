"""Text → the token ids the model was trained on, with the embedded tokenizer and with one of the published ids."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from config import EMBEDDED_CHECKPOINT
from deepseek_ocr.families import DEEPSEEK_OCR
from ocr_server.engine.prompt import PromptEncoder
from tests.ocr_server.conftest import examples

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE_ID = 128815
IMAGE_TOKEN, PROMPT_TOKENS = DEEPSEEK_OCR.image_token, DEEPSEEK_OCR.prompt_tokens
PUBLISHED = {
    BOS: 0,
    EOS: 1,
    PAD: 2,
    "<image>": 128815,
    "<|ref|>": 128816,
    "<|/ref|>": 128817,
    "<|det|>": 128818,
    "<|/det|>": 128819,
    "<|grounding|>": 128820,
    "<td>": 128821,
    "</td>": 128822,
    "<tr>": 128823,
    "</tr>": 128824,
}
NEWLINE_ID, WORDS = 201, {"Free": 21431, "ĠOCR": 126041, ".": 16}


def published_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges save those of `Free OCR.`, with the published ids where they are known."""
    vocabulary = {**PUBLISHED, **WORDS, "Ċ": NEWLINE_ID}
    merges: list[tuple[str, str]] = []
    free = iter(range(300, 2000))
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(character, next(free))
    for word in ("Free", "ĠOCR"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], next(free))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in PUBLISHED])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)


@pytest.fixture(scope="module")
def published() -> PreTrainedTokenizerFast:
    tokenizer = published_tokenizer()
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in PUBLISHED} == PUBLISHED
    return tokenizer


@pytest.fixture(scope="module")
def embedded() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED_CHECKPOINT)


@pytest.fixture(scope="module", params=["published", "embedded"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer, DEEPSEEK_OCR)


class Ids:
    """A tokenizer's ids by name."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocabulary = tokenizer.get_vocab()
        self.bos, self.image = tokenizer.bos_token_id, self.vocabulary[IMAGE_TOKEN]
        self.special = set(tokenizer.all_special_ids) | self.known(PUBLISHED)
        self.allowed = self.known(PROMPT_TOKENS)

    def known(self, tokens: Iterable[str]) -> set[int]:
        """Of those of `tokens` that it has: a small tokenizer lacks the rows of tables."""
        return {self.vocabulary[token] for token in tokens if token in self.vocabulary}


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> Ids:
    return Ids(tokenizer)


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def test_the_published_ids_of_free_ocr(published: PreTrainedTokenizerFast) -> None:
    assert PromptEncoder(published, DEEPSEEK_OCR).encode("Free OCR.") == [0, 128815, 201, 21431, 126041, 16]


def test_every_tokenizer_has_the_tokens(tokenizer: Any) -> None:
    rows = {"<tr>", "</tr>"}
    assert (set(PROMPT_TOKENS) | {IMAGE_TOKEN}) - rows <= set(tokenizer.get_vocab())


@pytest.mark.parametrize(
    "prompt",
    ["<|grounding|>Convert the document to markdown.", "<|grounding|>OCR this image.", "Parse the figure.", "描述"],
)
def test_structure(encoder: PromptEncoder, tokenizer: Any, ids: Ids, prompt: str) -> None:
    tokens = encoder.encode(prompt)
    assert tokens[:2] == [ids.bos, ids.image]
    assert decoded(tokenizer, tokens[2:]) == "\n" + prompt


@pytest.mark.parametrize("token", PROMPT_TOKENS)
@pytest.mark.parametrize("frame", ["{}", "a{}b", "a {} b", "{}{}", "\n{}\n"])
def test_prompt_tokens_are_one_id(encoder: PromptEncoder, ids: Ids, token: str, frame: str) -> None:
    tokens = encoder.encode(frame.replace("{}", token))
    expected = [each for each in ids.known([token]) for _ in range(frame.count("{}"))]
    assert [each for each in tokens[2:] if each in ids.special] == expected


@pytest.mark.parametrize("token", [token for token in PUBLISHED if token not in PROMPT_TOKENS])
@pytest.mark.parametrize("frame", ["a{}b", "a {} b", "a\n{}", "a<td>{}", "a{}{}", "<|ref|>{}<|/ref|>"])
def test_other_special_tokens_are_plain_characters(
    encoder: PromptEncoder, tokenizer: Any, ids: Ids, token: str, frame: str
) -> None:
    typed = frame.replace("{}", token)
    tokens = encoder.encode(typed)
    assert {each for each in tokens[2:] if each in ids.special} <= ids.allowed
    assert decoded(tokenizer, tokens[2:]) == "\n" + typed


@pytest.mark.parametrize("token", [BOS, EOS, PAD])
def test_a_leading_special_token_is_plain(encoder: PromptEncoder, ids: Ids, token: str) -> None:
    assert not ids.special & set(encoder.encode(token + "Free OCR.")[2:])


@pytest.mark.parametrize(
    "typed",
    [
        "<image>\nFree OCR.",
        "<image>Free OCR.",
        "  <image>  Free OCR.",
        "\n<image>\n\nFree OCR.",
        "<image><image>\n<image> Free OCR.",
    ],
)
def test_a_leading_image_is_dropped(encoder: PromptEncoder, typed: str) -> None:
    assert encoder.encode(typed) == encoder.encode("Free OCR.")


def test_a_prompt_of_nothing(encoder: PromptEncoder, ids: Ids) -> None:
    newline = encoder.encode("")
    assert newline[:2] == [ids.bos, ids.image]
    assert len(newline) == 3
    assert encoder.encode("<image>") == newline


PIECES = st.one_of(st.sampled_from([*PUBLISHED, "<imag", "e>", "<|", "|>", "\n", " "]), st.text(max_size=6))
TYPED = st.lists(PIECES, max_size=8).map("".join)


@given(typed=TYPED)
@examples(200)
def test_one_image_and_one_bos_whatever_is_typed(encoder: PromptEncoder, tokenizer: Any, ids: Ids, typed: str) -> None:
    tokens = encoder.encode(typed)
    assert tokens.count(ids.image) == 1
    assert tokens.count(ids.bos) == 1
    assert {token for token in tokens[2:] if token in ids.special} <= ids.allowed


@given(typed=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=40))
@examples(100)
def test_plain_text_as_the_tokenizer_does_it(encoder: PromptEncoder, tokenizer: Any, ids: Ids, typed: str) -> None:
    whole = tokenizer.encode("\n" + typed, add_special_tokens=False)
    assert encoder.encode(typed) == [ids.bos, ids.image, *whole]


def test_prompts_as_the_tokenizer_does_them(encoder: PromptEncoder, tokenizer: Any, ids: Ids) -> None:
    """What upstream writes as one text, `<image>` included, comes out the same."""
    for prompt in ["<|grounding|>OCR this image.", "Locate <|ref|>total<|/ref|> in the image."]:
        whole = tokenizer.encode(f"<image>\n{prompt}", add_special_tokens=False)
        assert encoder.encode(prompt) == [ids.bos, *whole]


def test_many_threads(encoder: PromptEncoder) -> None:
    prompts = [f"<|ref|>{number}<|/ref|> <image> text {number}" * 20 for number in range(40)]
    expected = [encoder.encode(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(encoder.encode, prompts * 5)) == expected * 5


def test_the_given_tokenizer_stays_as_it_was(published: PreTrainedTokenizerFast) -> None:
    PromptEncoder(published, DEEPSEEK_OCR)
    assert published.encode("a<image>b", add_special_tokens=False).count(IMAGE_ID) == 1


def test_clean_takes_only_the_ends(encoder: PromptEncoder) -> None:
    kept = "".join(PROMPT_TOKENS) + "<image> a｜b <｜User｜>"
    assert encoder.clean(f"{BOS}{kept}{EOS}{PAD}{PAD}") == kept
    assert encoder.clean(kept) == kept
    assert encoder.clean(EOS) == ""


@pytest.mark.parametrize("missing", [IMAGE_TOKEN, "bos"])
def test_a_tokenizer_of_another_model(missing: str) -> None:
    backend = Tokenizer(models.BPE({"a": 0, BOS: 1} | ({} if missing == IMAGE_TOKEN else {IMAGE_TOKEN: 2}), []))
    names = {} if missing == "bos" else {"bos_token": BOS}
    with pytest.raises(ValueError, match="not the tokenizer of a DeepSeek-OCR"):
        PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, **names), DEEPSEEK_OCR)
