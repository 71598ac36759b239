"""The definition of an output format: the artifacts that it needs, and the functions that write it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from deepseek_ocr.families import Family
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.tables import TableFormat
from ocr_server.reading.page import PageReading

NOTHING = Artifacts()


class PageText(Protocol):
    """Converts the answer for one page to text while it arrives."""

    def feed(self, piece: str) -> str:
        """Add a piece of the answer, and return the text that is final."""

    def close(self) -> str:
        """End the answer, and return the rest of the text."""


@dataclass(frozen=True)
class TextOptions:
    """Options of a request that affect the text of a page."""

    figure_name: Callable[[int], str]
    """Maps the number of a figure on the page, counted from 1, to its file name. An empty name omits the figure."""
    table_format: TableFormat
    family: Family


@dataclass(frozen=True)
class FinishedPage:
    """A finished page, as formats that write files receive it."""

    reading: PageReading
    markdown: str
    """Markdown of the page according to the options of the request. Empty if the page failed."""


@dataclass(frozen=True)
class OutputFile:
    """A file in an output format."""

    content: bytes | str | BinaryIO
    """A file object is open for reading, at its beginning; the receiver closes it."""
    media_type: str


Write = Callable[[AsyncIterator[FinishedPage], bool], Awaitable[OutputFile]]
"""Writes a file. Arguments: the pages in order, and whether they belong to a document rather than a single picture."""


@dataclass(frozen=True)
class Format:
    """An output format. `FORMATS` is the table of all output formats."""

    name: str
    media_type: str
    """Media type of the file that is written for a document."""
    description: str
    """One sentence for the documentation of the API."""
    artifacts: Artifacts = NOTHING
    """The artifacts that the format needs of each page."""
    text: Callable[[TextOptions], PageText] | None = None
    """Creates the converter for the text of one page. None if the format cannot be the text of a chat answer."""
    file: Write | None = None
    """Writes a file for all pages. None if the format cannot be an output of `/v1/ocr`."""
    options: frozenset[str] = frozenset()
    """Options of chat requests that affect this format. They are refused with formats that do not list them."""
    verbatim: bool = False
    """Whether the text is the unmodified output of the model, so that log probabilities of its tokens apply to it."""
