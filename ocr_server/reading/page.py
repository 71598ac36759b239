"""The data of a page on its way through the engine: what goes in, and what comes back."""

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
    """A page as it is given to the engine."""

    image: PreparedImage
    prompt: str
    decoding: Decoding


@dataclass(frozen=True)
class Job:
    """A page that has not been loaded yet."""

    load: Callable[[], Awaitable[SourcePage]]
    """Decodes or renders the page. Raises ReadError if it cannot be read."""
    mode: ResolutionMode
    prompt: str
    decoding: Decoding
    source: int = 0
    """Index of the request's source to which the page belongs, from 0."""
    number: int = 0
    """Index of the page in that source, from 0."""


class ScoredToken(NamedTuple):
    """A token and its log probability."""

    token: str
    logprob: float
    token_id: int = -1


class LogprobStep(NamedTuple):
    """A generated token and the most likely tokens at its place. The texts of all tokens are the text of the answer."""

    chosen: ScoredToken
    top: list[ScoredToken]
    """Most likely first."""


@dataclass(frozen=True, slots=True)
class PageDelta:
    """A piece of a page's answer. The pieces of each choice arrive in order."""

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
    """The stop token id or stop string that ended the choice, if one did."""
    token_ids: tuple[int, ...] = ()
    """The generated tokens, if their ids were requested."""
    prompt_token_ids: tuple[int, ...] = ()
    """The tokens of the prompt, in the first piece, if ids were requested."""


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
    """Position of the page in the answer, from 0."""
    source: int
    """`Job.source`."""
    number: int
    """`Job.number`."""
    width: int = 0
    height: int = 0
    """Size of the page as it was read, pixels; 0 if it could not be loaded."""
    dpi: float | None = None
    """Resolution at which the page was rendered, in pixels per inch; None for a picture."""
    image_tokens: int = 0
    """Number of vision tokens in the prompt."""
    deltas: list[PageDelta] = field(default_factory=list)
    """All pieces of the answer, from the last attempt if there were several."""
    attempts: list[Attempt] = field(default_factory=list)
    error: ReadError | None = None
    artifacts: object = None
    """The result of the `Finish` function for the page; see `output.artifacts`."""

    def text(self, choice: int = 0) -> str:
        """Return the answer exactly as the model generated it."""
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def finish_reason(self, choice: int = 0) -> str | None:
        """Return stop, length or repetition; error if the page failed; None while it is being read."""
        if self.error is not None:
            return "error"
        return next(
            (delta.finish_reason for delta in self.deltas if delta.choice == choice and delta.finish_reason), None
        )

    def steps(self, choice: int = 0) -> list[LogprobStep]:
        """Return the log probabilities of all generated tokens, if they were requested."""
        return [step for delta in self.deltas if delta.choice == choice for step in delta.logprobs or ()]

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt, including the picture's."""
        return self.deltas[0].prompt_tokens if self.deltas else 0

    @property
    def completion_tokens(self) -> int:
        """Number of generated tokens of all choices."""
        return sum(delta.num_tokens for delta in self.deltas)
