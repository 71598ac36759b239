"""What goes through the engine for one page, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vllm.sampling_params import SamplingParams

from deepseek_ocr.images import PreparedImage


@dataclass(frozen=True)
class Page:
    """One picture to read."""

    image: PreparedImage
    prompt: str
    params: SamplingParams
    """How to decode; `max_tokens` None means as many as the context leaves."""


class TokenLogprob(NamedTuple):
    token: str
    logprob: float


class LogprobStep(NamedTuple):
    """One generated token and its likeliest alternatives."""

    chosen: TokenLogprob
    top: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class PageDelta:
    """A piece of a page's answer; the pieces of one choice come in order."""

    choice: int
    text: str
    num_tokens: int
    """Generated tokens in this piece."""
    prompt_tokens: int
    """Tokens of the page's whole prompt, the picture's included."""
    logprobs: list[LogprobStep] | None = None
    finish_reason: str | None = None
    """Set on a choice's last piece: stop, length, repetition; abort or error raise instead."""
    stop_reason: int | str | None = None
