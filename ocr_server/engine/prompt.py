"""A user's text → the token ids the model was trained on.

The model has no chat template: its prompt is `<image>`, a newline, then the instruction. The rule
for special tokens in what a user types is this: the model's own prompt tokens (`Family.prompt_tokens`) work
as tokens; every other special token, `<image>` above all, is read as the plain characters it is made
of. A leading `<image>` is dropped, as that is how upstream writes its prompts.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

from deepseek_ocr.families import Family


class PromptEncoder:
    """Encodes prompts for one checkpoint. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, family: Family) -> None:
        """Args:
        tokenizer: A fast Hugging Face tokenizer of the checkpoint.
        family: The model's family.

        Raises:
            ValueError: The tokenizer lacks a token that the model needs.
        """
        backend = tokenizer.backend_tokenizer
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True  # in what is left, no token is special
        vocabulary = tokenizer.get_vocab()
        image = family.image_token
        if image not in vocabulary or tokenizer.bos_token_id is None:
            raise ValueError(f"the tokenizer is not DeepSeek-OCR's: it has no {image} or no bos token")
        self._prefix = [tokenizer.bos_token_id, vocabulary[image]]
        self._ids = {token: vocabulary[token] for token in family.prompt_tokens if token in vocabulary}
        self._split = re.compile("(" + "|".join(map(re.escape, family.prompt_tokens)) + ")")
        self._leading_image = re.compile(rf"\A\s*(?:{re.escape(image)}\s*)+")
        self.end_tokens = tuple(
            token for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) if token
        )

    def encode(self, text: str) -> list[int]:
        """bos, one image placeholder, a newline, and `text`."""
        ids = list(self._prefix)
        for piece in self._split.split("\n" + self._leading_image.sub("", text)):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += self._plain.encode(piece, add_special_tokens=False).ids
        return ids

    def clean(self, text: str) -> str:
        """The model's output without bos, eos and pad; every other token is part of the answer."""
        for token in self.end_tokens:
            text = text.replace(token, "")
        return text
