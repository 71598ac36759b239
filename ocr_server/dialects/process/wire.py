"""The wire types of `PUT /process`, as Open WebUI's loader reads them."""

from __future__ import annotations

from ocr_server.dialects.page_report import PageFinish
from ocr_server.dialects.wire import Answer, Maybe


class PageMetadata(Answer):
    """Where a page comes from. Open WebUI stores only plain values, so that there are no others."""

    source: str
    """Name of the file."""
    page: int
    """Index of the page, from 0."""
    page_label: str
    """Number of the page, from 1."""
    total_pages: int
    finish_reason: PageFinish
    """`stop` if the text is complete, otherwise why it is not."""
    error: Maybe[str] = None
    """Why the page could not be read."""


class ProcessedPage(Answer):
    page_content: str
    """The page as markdown."""
    metadata: PageMetadata
