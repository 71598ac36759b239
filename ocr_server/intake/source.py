"""A source of pages: what is to be opened, and how its pages are chosen and rendered."""

from __future__ import annotations

from dataclasses import dataclass

from ocr_server.intake.document import DEFAULT_DPI, Document
from ocr_server.intake.page_selection import Selection


@dataclass(frozen=True)
class Url:
    """An `http:`, `https:` or `data:` URL whose content is still to be fetched or decoded."""

    address: str


@dataclass(frozen=True)
class Base64:
    """A file as base64 text that has not been decoded yet."""

    text: str


@dataclass(frozen=True)
class StoredFile:
    """A file that the client has uploaded to this server before."""

    file_id: str


Content = Url | Base64 | StoredFile | bytes | Document
"""Where the pages are: behind a URL, in a file that is stored or in memory, or in a document that is open already."""


@dataclass(frozen=True)
class Source:
    """One picture or document of a request."""

    content: Content
    pages: Selection | None = None
    """The pages to read; None for all. A picture has one page. Of an open document they are chosen already."""
    dpi: float = DEFAULT_DPI
    """Resolution at which a PDF's pages are rendered, pixels per inch."""
    password: str | None = None
    """Opens an encrypted PDF."""
