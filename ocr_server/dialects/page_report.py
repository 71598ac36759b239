"""Reports on pages, which accompany the text of an answer: their wire types, and functions that create them."""

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
    """Kind of block: title, sub_title, text, list, table, image, equation and so on; text for located words."""
    text: str
    """Text of the block; empty for a figure."""
    boxes: list[tuple[int, int, int, int]]
    """Bounding boxes: left, top, right, bottom in pixels of the page, with (0, 0) in its upper left corner."""
    model_boxes: list[tuple[int, int, int, int]]
    """The same boxes as the model gave them, from 0 to 999 across the page's width and height."""
    confidence: Maybe[float] = None
    """Geometric mean of the probabilities of the block's tokens, if requested."""


class FigureReport(Answer):
    name: str
    """File name, as in the markdown's links. It does not depend on which pages were selected."""
    box: tuple[int, int, int, int]
    """Bounding box: left, top, right, bottom in pixels of the page."""
    data: Maybe[str] = None
    """The figure, cut out of the page, as a data URI of a JPEG, if requested."""


class PageReport(Answer):
    """A page and how it was read."""

    index: int
    """Position of the page in the answer, from 0."""
    source: int
    """Index of the picture or document in the request, from 0."""
    page: int
    """Page number in that picture or document, from 1."""
    width: int
    """Width of the page as it was read, pixels; 0 if it could not be loaded."""
    height: int
    """Height of the page as it was read, pixels; 0 if it could not be loaded."""
    dpi: Maybe[float] = None
    """Resolution at which the page of a PDF was rendered, pixels per inch."""
    finish_reason: PageFinish
    """`stop`: the answer is complete. `length`: it was cut off at `max_tokens` or at the end of the context.
    `repetition`: it was ended because the model repeated itself. `error`: the page could not be read."""
    prompt_tokens: int
    """Tokens of the page's prompt, including those of the picture."""
    completion_tokens: int
    """Generated tokens."""
    attempts: Maybe[list[AttemptReport]] = None
    """All attempts to read the page, if it was read again because the model repeated itself. The last one counts."""
    error: Maybe[PageError] = None
    """Why the page could not be read."""
    confidence: Maybe[float] = None
    """Geometric mean of the probabilities of the page's tokens, if requested."""
    blocks: Maybe[list[BlockReport]] = None
    """Blocks in reading order, if requested."""
    figures: Maybe[list[FigureReport]] = None
    """Figures on the page, if blocks were requested."""


class PageOpened(Answer):
    """In a stream, before a page's text: the page that is about to be read."""

    index: int
    """Position of the page in the answer, from 0."""
    source: int
    """Index of the picture or document in the request, from 0."""
    page: int
    """Page number in that picture or document, from 1."""
    pages: int
    """Number of pages in the answer."""
    width: int
    """Width of the page, pixels."""
    height: int
    """Height of the page, pixels."""
    dpi: Maybe[float] = None
    """Resolution at which the page of a PDF was rendered, pixels per inch."""
    image: str
    """The page, upright and in RGB, as a data URI of a JPEG."""


class OcrExtension(Answer):
    """This server's extension of OpenAI's answer: a report on each page."""

    pages: list[PageReport]


def page_report(reading: PageReading, *, choice: int = 0) -> PageReport:
    """Return the report on a page, with blocks and figures if artifacts were made of it."""
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
    """Return what a stream sends before the page's text.

    Args:
        pages: Number of pages in the answer.
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
    """Return a JPEG file as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _mode(mode: ResolutionMode) -> str:
    """Return the name of a named mode, or the sizes of any other."""
    return mode_name(mode) or f"{mode.base_size}/{mode.image_size}{' with tiles' if mode.crop_mode else ''}"
