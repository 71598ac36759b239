"""What an output format is: what it needs of each page, and how it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from deepseek_ocr.families import Family
from ocr_server.output.artifacts import Artifacts
from ocr_server.output.tables import TableFormat
from ocr_server.reading.page import PageReading

NOTHING = Artifacts()


class PageText(Protocol):
    """The text of one page, made of the model's answer as it comes."""

    def feed(self, piece: str) -> str:
        """What is certain after a further piece of the answer."""

    def close(self) -> str:
        """The rest, when the answer has ended."""


@dataclass(frozen=True)
class TextOptions:
    """What a request says about a page's text."""

    figure_name: Callable[[int], str]
    """Number of a figure on the page, from 1 → its file name; empty to leave it out."""
    table_format: TableFormat
    family: Family


@dataclass(frozen=True)
class FinishedPage:
    """A page for a format that writes files."""

    reading: PageReading
    markdown: str
    """As the request's options have it; empty for a page that failed."""


@dataclass(frozen=True)
class File:
    content: bytes | str
    media_type: str


Write = Callable[[AsyncIterator[FinishedPage], bool], Awaitable[File]]
"""Pages in order, and whether they are a document's rather than a single picture → the file."""


@dataclass(frozen=True)
class Format:
    """One way in which an answer is written. `FORMATS` is the table of all."""

    name: str
    media_type: str
    """Of the file, if pages are a document's."""
    description: str
    """For the API's documentation, one sentence."""
    artifacts: Artifacts = NOTHING
    """What has to be made of each page."""
    text: Callable[[TextOptions], PageText] | None = None
    """Makes a page's text, where the format can be an answer's text (chat)."""
    file: Write | None = None
    """Writes a whole document, where the format can be a file (`/v1/ocr`)."""
    options: frozenset[str] = frozenset()
    """Request options that only formats which name them take."""
    verbatim: bool = False
    """Whether the text is the model's own, so that log probabilities of its tokens belong to it."""
