"""Renders PDFs in worker processes."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.source_page import Rgb, SourcePage
from ocr_server.intake.workers import WorkerLost, Workers, WorkerTimeout


class PdfFile:
    """A PDF in a temporary file without a name, which vanishes with the object or the process, however that ends."""

    def __init__(self, data: bytes, password: str | None) -> None:
        """Write the file; not for the event loop, since this blocks. Raises OSError if the disk is full."""
        self.password = password
        self.name = f"pdf {uuid.uuid4().hex}"
        self.content = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by `close`
        left = memoryview(data)
        while left:
            left = left[self.content.write(left) :]

    def close(self) -> None:
        """Remove the file. Idempotent."""
        self.content.close()


@dataclass(frozen=True)
class PdfInfo:
    """What is known of a PDF before its pages are rendered."""

    page_count: int
    """At least 1. As the file declares it; a missing page is noticed when it is rendered."""


class PdfRenderer:
    """Opens PDFs and renders their pages."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    @property
    def timeout_s(self) -> float:
        """Time limit for each call in seconds, from when a process starts on it."""
        return self._workers.timeout_s

    async def inspect(self, file: PdfFile) -> PdfInfo:
        """Open a PDF and return what it declares. Its pages are not examined.

        Raises:
            PdfError: `password_required`, `password_wrong`, `damaged`, `empty` or `timeout`; `failed` if the process
                died.
            Unavailable: No process can be started.
        """
        count, _ = await self._call(file, "count_pages")
        return PdfInfo(count)

    async def measure(self, file: PdfFile, index: int, dpi: float, max_pixels: int) -> tuple[int, int]:
        """Return the width and height that `render` gives a page, in pixels. Raises as `render`."""
        (width, height), _ = await self._call(file, "measure", index, dpi, max_pixels)
        return width, height

    async def render(self, file: PdfFile, index: int, dpi: float, max_pixels: int) -> SourcePage:
        """Render one page, upright, on white, with annotations and form fields.

        Args:
            index: Index of the page, from 0.
            dpi: Resolution in pixels per inch.
            max_pixels: Maximum of width times height; a page that would exceed it is rendered at a lower resolution.

        Raises:
            PdfError: As in `inspect`; also `giant_page` and `page_failed`.
            Unavailable: No process can be started.
        """
        dpi, pixels = await self._call(file, "render", index, dpi, max_pixels)
        if pixels is None:
            raise PdfError("failed")
        return SourcePage(pixels, dpi)

    def discard(self, file: PdfFile) -> None:
        """Remove a PDF, and close it in the processes that have it open."""
        file.close()
        self._workers.forget(file.name, "pdf_worker.forget")

    async def _call(self, file: PdfFile, function: str, *arguments: Any) -> tuple[Any, Rgb | None]:
        try:
            return await self._workers.call(
                file.name, f"pdf_worker.{function}", file.password, *arguments, file=file.content
            )
        except WorkerTimeout as error:
            raise PdfError("timeout") from error
        except WorkerLost as error:
            raise PdfError("failed") from error
