"""What an answer says of each page beside its text: the wire types, and how they are made of a page's reading."""

from __future__ import annotations

import base64
from typing import Literal, cast

from deepseek_ocr.families import mode_name
from deepseek_ocr.modes import ResolutionMode
from ocr_server.dialects.wire import Answer, Maybe
from ocr_server.output.artifacts import PageArtifacts
from ocr_server.output.confidence import confidence
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Opened

PageFinish = Literal["stop", "length", "repetition", "error"]


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


def page_report(reading: PageReading, *, choice: int = 0) -> PageReport:
    """With blocks and figures if the reading has its artifacts."""
    artifacts = reading.artifacts if isinstance(reading.artifacts, PageArtifacts) else None
    whole = confidence(artifacts.spans) if artifacts is not None else None
    error = reading.error
    return PageReport(
        index=reading.index,
        source=reading.source,
        page=reading.number + 1,
        width=reading.width,
        height=reading.height,
        dpi=reading.dpi,
        finish_reason=cast(PageFinish, reading.finish_reason(choice) or "error"),
        prompt_tokens=reading.prompt_tokens,
        completion_tokens=reading.completion_tokens,
        attempts=[
            AttemptReport(
                mode=_mode(attempt.mode),
                ngram_size=attempt.ngram_size,
                window_size=attempt.window_size,
                finish_reason=cast(PageFinish, attempt.finish_reason or "error"),
            )
            for attempt in reading.attempts
        ]
        if len(reading.attempts) > 1
        else None,
        error=None if error is None else PageError(message=error.message, code=error.code),
        confidence=None if whole is None else whole.average,
        blocks=None if artifacts is None else _blocks(artifacts),
        figures=None if artifacts is None else _figures(artifacts),
    )


def page_opened(opened: Opened, *, pages: int) -> PageOpened:
    """Args:
    pages: of the whole answer.
    """
    reading = opened.reading
    return PageOpened(
        index=reading.index,
        source=reading.source,
        page=reading.number + 1,
        pages=pages,
        width=reading.width,
        height=reading.height,
        dpi=reading.dpi,
        image=jpeg_uri(opened.picture),
    )


def _blocks(artifacts: PageArtifacts) -> list[BlockReport]:
    reports = []
    for block in artifacts.blocks:
        sure = confidence(artifacts.spans, block.start, block.end)
        reports.append(
            BlockReport(
                label=block.label,
                text=block.text,
                boxes=list(block.boxes),
                model_boxes=list(block.model_boxes),
                confidence=None if sure is None else sure.average,
            )
        )
    return reports


def _figures(artifacts: PageArtifacts) -> list[FigureReport]:
    return [
        FigureReport(name=figure.name, box=figure.box, data=None if figure.jpeg is None else jpeg_uri(figure.jpeg))
        for figure in artifacts.figures
    ]


def jpeg_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _mode(mode: ResolutionMode) -> str:
    """The name of a known mode; else its sizes."""
    return mode_name(mode) or f"{mode.base_size}/{mode.image_size}{' with tiles' if mode.crop_mode else ''}"
