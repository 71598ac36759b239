"""Decoding options, independent of vLLM. Only `engine/` converts them to vLLM's sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepseek_ocr.guard import Guard


@dataclass(frozen=True)
class LoopDetection:
    """When the engine ends an answer that repeats itself."""

    shortest: int
    longest: int
    """Lengths of the repeated text, in tokens."""
    repeats: int
    """How often the text must occur in a row."""


@dataclass(frozen=True)
class Decoding:
    """Decoding options of a page, with vLLM's names. The engine checks the values (`Engine.check`)."""

    max_tokens: int | None = None
    """Maximum number of tokens to generate, limited to what the context leaves; None for no other limit."""
    n: int = 1
    """Number of answers."""
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int = 0
    """0 for all tokens."""
    min_p: float = 0.0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    include_stop: bool = False
    """Whether the text of `stop` that was found is part of the answer."""
    bad_words: tuple[str, ...] = ()
    """Texts that are never generated."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Tokens that may be generated; None for all."""
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    """Number of alternatives for each token; None for no log probabilities."""
    logit_bias: Mapping[str, float] | None = None
    """Token id → value added to its logit."""
    json_schema: Mapping[str, Any] | None = None
    """JSON schema that the answer follows."""
    json_object: bool = False
    """Whether the answer is any JSON object."""
    choice: tuple[str, ...] | None = None
    """Texts of which the answer is one."""
    regex: str | None = None
    """Regular expression that the answer matches."""
    grammar: str | None = None
    """Grammar that the answer follows, in EBNF as xgrammar reads it."""
    guard: Guard = field(default_factory=Guard)
    """Settings of the no-repeat n-gram guard."""
    stream: bool = False
    """Whether tokens are delivered as they are generated; otherwise the answer comes in one piece."""
    detect_loops: bool = False
    """Whether the engine ends an answer that repeats itself."""
    loops: LoopDetection | None = None
    """When to end it; None for the engine's own choice."""
    token_ids: bool = False
    """Whether the ids of all tokens are returned."""

    @property
    def is_structured(self) -> bool:
        """Whether a grammar constrains the answer."""
        given = (self.json_schema, self.choice, self.regex, self.grammar)
        return self.json_object or any(each is not None for each in given)
