"""A page's reading → what an answer says of it."""

from __future__ import annotations

import base64
from typing import cast

from deepseek_ocr.modes import ResolutionMode, mode_name
from ocr_server.dialects.pages import (
    AttemptReport,
    BlockReport,
    FigureReport,
    PageError,
    PageFinish,
    PageOpened,
    PageReport,
)
from ocr_server.output.artifacts import Product
from ocr_server.output.confidence import confidence
from ocr_server.reading.page import PageReading
from ocr_server.reading.reader import Opened


def page_report(reading: PageReading, *, choice: int = 0) -> PageReport:
    """With blocks and figures if the reading has its product."""
    product = reading.product if isinstance(reading.product, Product) else None
    whole = confidence(product.spans) if product is not None else None
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
        blocks=None if product is None else _blocks(product),
        figures=None if product is None else _figures(product),
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


def _blocks(product: Product) -> list[BlockReport]:
    reports = []
    for block in product.blocks:
        sure = confidence(product.spans, block.start, block.end)
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


def _figures(product: Product) -> list[FigureReport]:
    return [
        FigureReport(name=figure.name, box=figure.box, data=None if figure.jpeg is None else jpeg_uri(figure.jpeg))
        for figure in product.figures
    ]


def jpeg_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _mode(mode: ResolutionMode) -> str:
    """The name of a known mode; else its sizes."""
    return mode_name(mode) or f"{mode.base_size}/{mode.image_size}{' with tiles' if mode.crop_mode else ''}"
