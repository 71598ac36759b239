"""Decoding options, independent of vLLM. Only `engine/` converts them to vLLM's sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepseek_ocr.guard import Guard


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
    guard: Guard = field(default_factory=Guard)
    """Settings of the no-repeat n-gram guard."""
    stream: bool = False
    """Whether tokens are delivered as they are generated; otherwise the answer comes in one piece."""
    detect_loops: bool = False
    """Whether the engine ends an answer that repeats itself."""

    @property
    def is_structured(self) -> bool:
        """Whether a grammar constrains the answer."""
        return self.json_object or self.json_schema is not None or self.choice is not None
