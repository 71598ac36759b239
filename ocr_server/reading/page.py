"""What goes through the engine for one page, and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm.sampling_params import SamplingParams

from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import ApiError
from ocr_server.intake.source_page import SourcePage


@dataclass(frozen=True)
class Page:
    """One picture to read, as the engine takes it."""

    image: PreparedImage
    prompt: str
    params: SamplingParams
    """How to decode; `max_tokens` None means as many as the context leaves."""


@dataclass(frozen=True)
class Job:
    """A page that is still where it comes from."""

    load: Callable[[], Awaitable[SourcePage]]
    """Fetch its picture. Raises ApiError if this page can't be had."""
    mode: ResolutionMode
    prompt: str
    params: SamplingParams
    source: int = 0
    """Which of the request's pictures and documents it belongs to, from 0."""
    number: int = 0
    """Its number in there, from 0."""


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


@dataclass(frozen=True)
class Attempt:
    """One try at reading a page."""

    mode: ResolutionMode
    ngram_size: int
    window_size: int
    finish_reason: str | None


@dataclass
class PageReading:
    """A page that has been read, or that could not be."""

    index: int
    """Its place in the whole answer, from 0."""
    source: int
    number: int
    """As in its `Job`."""
    width: int = 0
    height: int = 0
    """Size of the picture that was read, pixels; 0 if it could not be had."""
    dpi: float | None = None
    """At which it was rendered; None if it was a picture to begin with."""
    image_tokens: int = 0
    deltas: list[PageDelta] = field(default_factory=list)
    """All pieces of the answer that counts."""
    attempts: list[Attempt] = field(default_factory=list)
    error: ApiError | None = None
    product: object = None
    """What the request's `finish` made of the page and its answer."""

    def text(self, choice: int = 0) -> str:
        """The answer exactly as the model gave it."""
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def finish_reason(self, choice: int = 0) -> str | None:
        """stop, length or repetition; error for a page that failed; None before its end."""
        if self.error is not None:
            return "error"
        return next(
            (delta.finish_reason for delta in self.deltas if delta.choice == choice and delta.finish_reason), None
        )

    def steps(self, choice: int = 0) -> list[LogprobStep]:
        return [step for delta in self.deltas if delta.choice == choice for step in delta.logprobs or ()]

    @property
    def prompt_tokens(self) -> int:
        return self.deltas[0].prompt_tokens if self.deltas else 0

    @property
    def completion_tokens(self) -> int:
        return sum(delta.num_tokens for delta in self.deltas)
