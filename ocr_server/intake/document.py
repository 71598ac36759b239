"""An opened source, a picture or a document, whose pages are decoded one by one when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ocr_server.intake.source_page import SourcePage
from ocr_server.memory import Reservation

MIN_DPI, MAX_DPI = 36, 600
"""Resolutions at which a PDF may be rendered, pixels per inch."""
DEFAULT_DPI = 144


class Document(ABC):
    """An opened source. Close it when its pages have been read."""

    def __init__(self, indices: Sequence[int], size_bytes: int, *, is_document: bool) -> None:
        self.indices = indices
        """The index in the source of each selected page, from 0."""
        self.size_bytes = size_bytes
        self.is_document = is_document
        """Whether it is a PDF or a TIFF with several pages, where a page that fails is an error of that page only."""
        self.memory: Reservation | None = None
        """What the file takes of the memory budget, if it does not belong to the body of the request."""

    @property
    def page_count(self) -> int:
        """Number of selected pages."""
        return len(self.indices)

    @abstractmethod
    async def page(self, number: int) -> SourcePage:
        """Decode or render a page, as soon as there is memory for it. Close the page when it is no longer needed.

        Pages may be asked for in any order, and several at a time, but by nobody who holds a page.

        Args:
            number: Position among the selected pages, from 0.

        Raises:
            SourceError: This page cannot be read; others may be.
            Unavailable: No process can be started to decode it in.
        """

    async def close(self) -> None:
        """Release what the document holds. Idempotent."""
        if self.memory is not None:
            self.memory.close()

    def single(self, number: int) -> Document:
        """Return a document with one of the selected pages, which is readable as long as this document is open.

        Closing the returned document does not close this one.
        """
        return _SinglePage(self, number)


class _SinglePage(Document):
    """One page of a document, which is closed by its owner."""

    def __init__(self, document: Document, number: int) -> None:
        super().__init__([document.indices[number]], document.size_bytes, is_document=document.is_document)
        self._document = document
        self._number = number

    async def page(self, number: int) -> SourcePage:
        return await self._document.page(self._number)


class LoadedPage(Document):
    """A single page that was decoded elsewhere, such as in another process."""

    def __init__(self, page: SourcePage) -> None:
        super().__init__([0], page.pixels.nbytes, is_document=False)
        self._page = page

    async def page(self, number: int) -> SourcePage:
        return self._page
