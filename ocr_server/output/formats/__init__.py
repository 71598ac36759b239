"""The table of output formats. To add a format, add a file to this folder and a line to the table."""

from __future__ import annotations

from collections.abc import Mapping

from ocr_server.output.formats.blocks import BLOCKS
from ocr_server.output.formats.format import FinishedPage, Format, OutputFile, PageText, TextOptions
from ocr_server.output.formats.markdown import MARKDOWN
from ocr_server.output.formats.overlay import OVERLAY
from ocr_server.output.formats.raw import RAW

FORMATS: Mapping[str, Format] = {each.name: each for each in (RAW, MARKDOWN, BLOCKS, OVERLAY)}
TEXT_FORMATS = tuple(name for name, each in FORMATS.items() if each.text is not None)
"""Names of the formats in which the text of an answer can be written."""
FILE_FORMATS = tuple(name for name, each in FORMATS.items() if each.file is not None)
"""Names of the formats in which a file can be written."""

__all__ = [
    "FILE_FORMATS",
    "FORMATS",
    "TEXT_FORMATS",
    "FinishedPage",
    "Format",
    "OutputFile",
    "PageText",
    "TextOptions",
]
