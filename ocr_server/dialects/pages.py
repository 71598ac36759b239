"""What the server says of each page beside its text."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
Maybe = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""A field that is left out of the answer where there is nothing to say."""

PageFinish = Literal["stop", "length", "repetition", "error"]


class Answer(BaseModel):
    """What goes to a client."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class PageError(Answer):
    message: str
    code: str | None


class AttemptReport(Answer):
    mode: str
    """Name of the resolution mode, or its sizes."""
    ngram_size: int
    window_size: int
    finish_reason: PageFinish


class BlockReport(Answer):
    label: str
    """title, sub_title, text, list, table, image, equation and the like; text for a located line or word."""
    text: str
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right, bottom in pixels of the page, (0, 0) at its upper left."""
    model_boxes: list[tuple[int, int, int, int]]
    """The same as the model said them: 0 to 999 of the page's width and height."""
    confidence: Maybe[float] = None
    """Geometric mean of its tokens' probabilities, if it was asked for."""


class FigureReport(Answer):
    name: str
    """As the markdown links it; the same whichever pages were asked for."""
    box: tuple[int, int, int, int]
    """In pixels of the page."""
    data: Maybe[str] = None
    """The picture as a data URI, cut from the page as it was read, if it was asked for."""


class PageReport(Answer):
    """A page and how its reading went."""

    index: int
    """Its place in the answer, from 0."""
    source: int
    """Which picture or document of the request it is from, from 0."""
    page: int
    """Its number in there, from 1."""
    width: int
    height: int
    """Pixels of the page as it was read; 0 if there was none to read."""
    dpi: Maybe[float] = None
    """At which a document's page was rendered."""
    finish_reason: PageFinish
    """stop: whole. length: cut at max_tokens or the context. repetition: ended as the model repeated itself.
    error: not read."""
    prompt_tokens: int
    completion_tokens: int
    attempts: Maybe[list[AttemptReport]] = None
    """All tries, the last of which counts, if the first one looped."""
    error: Maybe[PageError] = None
    confidence: Maybe[float] = None
    """Geometric mean of the tokens' probabilities, if it was asked for."""
    blocks: Maybe[list[BlockReport]] = None
    """In reading order, if they were asked for."""
    figures: Maybe[list[FigureReport]] = None


class PageOpened(Answer):
    """In a stream, before a page's text: the page as it is about to be read."""

    index: int
    """Its place in the answer, from 0."""
    source: int
    """Which picture or document of the request it is from, from 0."""
    page: int
    """Its number in there, from 1."""
    pages: int
    """How many pages the answer has."""
    width: int
    height: int
    """Pixels."""
    dpi: Maybe[float] = None
    """At which a document's page was rendered."""
    image: str
    """The page upright and in RGB, a JPEG as a data URI."""


class OcrExtension(Answer):
    """The extension of OpenAI's answer: the pages."""

    pages: list[PageReport]
