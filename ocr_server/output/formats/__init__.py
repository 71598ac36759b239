"""Output formats by name. A new format is a file of this folder and a line of the table."""

from __future__ import annotations

from collections.abc import Mapping

from ocr_server.output.formats.blocks import BLOCKS
from ocr_server.output.formats.format import File, FinishedPage, Format, PageText, TextOptions
from ocr_server.output.formats.markdown import MARKDOWN
from ocr_server.output.formats.overlay import OVERLAY
from ocr_server.output.formats.raw import RAW

FORMATS: Mapping[str, Format] = {each.name: each for each in (RAW, MARKDOWN, BLOCKS, OVERLAY)}
TEXT_FORMATS = tuple(name for name, each in FORMATS.items() if each.text is not None)
"""Names of the formats that can be an answer's text."""
FILE_FORMATS = tuple(name for name, each in FORMATS.items() if each.file is not None)
"""Names of the formats that can be a file."""

__all__ = [
    "FILE_FORMATS",
    "FORMATS",
    "TEXT_FORMATS",
    "File",
    "FinishedPage",
    "Format",
    "PageText",
    "TextOptions",
]
