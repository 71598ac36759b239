"""The `ocr` object of the APIs whose answer is a text: this server's own options."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field

from ocr_server.dialects.wire import PageNumbers, ReadingOptions, known
from ocr_server.errors import InvalidRequest
from ocr_server.output.formats import FORMATS, TEXT_FORMATS, Format

PREFIX = "ocr."
"""Prefix of these options in the names of parameters."""


class OcrOptions(ReadingOptions):
    """Options of this server. With OpenAI's SDK, pass them as `extra_body={"ocr": {…}}`."""

    output: Annotated[
        str, AfterValidator(partial(known, TEXT_FORMATS)), Field(json_schema_extra={"enum": list(TEXT_FORMATS)})
    ] = "raw"
    """`raw`: the model's text, verbatim. `markdown`: markdown without markers, with links to figures. `blocks`: the
    same markdown, and the blocks of each page with their bounding boxes."""
    pages: PageNumbers | None = None
    """Pages of the documents, counted from 1: `"1-3,7"`, `"5-"` or a list of numbers. The default is all pages."""
    page_separator: Annotated[str | None, Field(max_length=1000)] = None
    """Text between two pages. The default is a line `<--- Page Split --->` between blank lines."""
    include_figures: bool = False
    """With `output: blocks`: return the figures as data URIs."""
    include_page_images: bool = False
    """With `stream: true`: send the picture of each page before its text, also for PDF, TIFF and HEIC, and a report on
    the page after it."""
    confidence: bool = False
    """With `output: blocks`: return the model's confidence in each page and block."""


def check_output(options: OcrOptions, written: Format, *, stream: bool) -> None:
    """Refuse options that have no effect on this output format or that it does not support. Raises InvalidRequest."""
    if options.include_page_images and not stream:
        raise InvalidRequest("ocr.include_page_images needs stream: true.", param="ocr.include_page_images")
    for name in ("table_format", "include_figures", "confidence"):
        if getattr(options, name) and name not in written.options:
            takes = " or ".join(each.name for each in FORMATS.values() if name in each.options)
            raise InvalidRequest(f"ocr.{name} needs ocr.output: {takes}.", param=f"ocr.{name}")
