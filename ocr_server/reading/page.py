"""A page on its way through the engine: what goes in, and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from deepseek_ocr.images import PreparedImage
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import ReadError
from ocr_server.intake.source_page import SourcePage
from ocr_server.reading.decoding import Decoding


@dataclass(frozen=True)
class Page:
    """A page as the engine takes it."""

    image: PreparedImage
    prompt: str
    decoding: Decoding


@dataclass(frozen=True)
class Job:
    """A page that has not been loaded yet."""

    load: Callable[[], Awaitable[SourcePage]]
    """Decode or render it. Raises ReadError if this page cannot be read."""
    mode: ResolutionMode
    prompt: str
    decoding: Decoding
    source: int = 0
    """Which of the request's sources it belongs to, from 0."""
    number: int = 0
    """Its index in that source, from 0."""


class TokenLogprob(NamedTuple):
    token: str
    logprob: float


class LogprobStep(NamedTuple):
    """A generated token and its most likely alternatives."""

    chosen: TokenLogprob
    top: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class PageDelta:
    """A piece of a page's answer. The pieces of each choice come in order."""

    choice: int
    text: str
    num_tokens: int
    """Number of generated tokens in this piece."""
    prompt_tokens: int
    """Number of tokens of the page's prompt, including the picture's."""
    logprobs: list[LogprobStep] | None = None
    finish_reason: str | None = None
    """Set on the last piece of a choice: stop, length or repetition. An aborted or failed page raises instead."""
    stop_reason: int | str | None = None


@dataclass(frozen=True)
class Attempt:
    """One attempt to read a page."""

    mode: ResolutionMode
    ngram_size: int
    window_size: int
    finish_reason: str | None


@dataclass
class PageReading:
    """A page that has been read, or that failed."""

    index: int
    """Its position in the answer, from 0."""
    source: int
    number: int
    """As in its `Job`."""
    width: int = 0
    height: int = 0
    """Size of the page as it was read, pixels; 0 if it could not be loaded."""
    dpi: float | None = None
    """Resolution it was rendered at, pixels per inch; None for a picture."""
    image_tokens: int = 0
    deltas: list[PageDelta] = field(default_factory=list)
    """All pieces of the answer; of the last attempt if there were several."""
    attempts: list[Attempt] = field(default_factory=list)
    error: ReadError | None = None
    artifacts: object = None
    """What `finish` made of the page, see `output.artifacts`."""

    def text(self, choice: int = 0) -> str:
        """The answer exactly as the model gave it."""
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def finish_reason(self, choice: int = 0) -> str | None:
        """stop, length or repetition; error if the page failed; None while it is being read."""
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
