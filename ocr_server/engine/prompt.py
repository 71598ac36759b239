"""Turns a user's text into the token ids that the model was trained on.

The model has no chat template: its prompt is `<image>`, a newline and the instruction. In what a user types, the
model's prompt tokens (`Family.prompt_tokens`) are special tokens. All other special tokens, most importantly `<image>`,
are read as plain characters. A leading `<image>` is removed, because the original scripts write their prompts so.
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
        self._plain.encode_special_tokens = True  # no token is special in the text between prompt tokens
        vocabulary = tokenizer.get_vocab()
        image = family.image_token
        if image not in vocabulary or tokenizer.bos_token_id is None:
            raise ValueError(f"this is not the tokenizer of a DeepSeek-OCR: it has no {image} or no bos token")
        self._prefix = [tokenizer.bos_token_id, vocabulary[image]]
        self._ids = {token: vocabulary[token] for token in family.prompt_tokens if token in vocabulary}
        self._split = re.compile("(" + "|".join(map(re.escape, family.prompt_tokens)) + ")")
        self._leading_image = re.compile(rf"\A\s*(?:{re.escape(image)}\s*)+")
        self.end_tokens = tuple(
            token for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) if token
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of bos, one image placeholder, a newline and `text`."""
        ids = list(self._prefix)
        for piece in self._split.split("\n" + self._leading_image.sub("", text)):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += self._plain.encode(piece, add_special_tokens=False).ids
        return ids

    def clean(self, text: str) -> str:
        """Return the model's output without bos, eos and pad. Every other token is part of the answer."""
        for token in self.end_tokens:
            text = text.replace(token, "")
        return text
