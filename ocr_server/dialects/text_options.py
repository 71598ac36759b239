"""The `ocr` object of the APIs whose answer is a text: this server's own options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from ocr_server.dialects.wire import PageNumbers, ReadingOptions, known
from ocr_server.errors import InvalidRequest
from ocr_server.output.formats import FORMATS, TEXT_FORMATS, Format
from ocr_server.output.formats.markdown import MARKDOWN
from ocr_server.output.formats.raw import RAW

if TYPE_CHECKING:
    from config import Settings

PREFIX = "ocr."
"""Prefix of these options in the names of parameters."""


class OcrOptions(ReadingOptions):
    """Options of this server. With OpenAI's SDK, pass them as `extra_body={"ocr": {…}}`."""

    output: Annotated[
        str | None,
        AfterValidator(partial(known, TEXT_FORMATS)),
        Field(json_schema_extra={"enum": [*TEXT_FORMATS, None]}),
    ] = None
    """`raw`: the model's text, verbatim. `markdown`: markdown without markers, with links to figures. `blocks`: the
    same markdown, and the blocks of each page with their bounding boxes. By default, the model's name says it
    (`deepseek-ocr:markdown`); otherwise it is `raw` with a prompt, and `markdown` without one."""
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


def text_format(
    options: OcrOptions, named: str | None, settings: Settings, *, has_prompt: bool, verbatim: bool
) -> Format:
    """Return the format of an answer's text.

    Args:
        named: The format that the model's name asks for, if any.
        has_prompt: Whether the request has a prompt of its own.
        verbatim: Whether another option needs the text as the model wrote it. The server's defaults then do not apply.
    """
    wanted = options.output or named
    if wanted is None and not verbatim:
        wanted = settings.DEFAULT_OUTPUT
        if wanted == "auto":
            wanted = RAW.name if has_prompt else MARKDOWN.name
    return FORMATS[wanted or RAW.name]


def check_output(options: OcrOptions, written: Format, *, stream: bool) -> None:
    """Refuse options that have no effect on this output format or that it does not support. Raises InvalidRequest."""
    if options.include_page_images and not stream:
        raise InvalidRequest("ocr.include_page_images needs stream: true.", param="ocr.include_page_images")
    for name in ("table_format", "include_figures", "confidence"):
        if getattr(options, name) and name not in written.options:
            takes = " or ".join(each.name for each in FORMATS.values() if name in each.options)
            raise InvalidRequest(f"ocr.{name} needs ocr.output: {takes}.", param=f"ocr.{name}")
