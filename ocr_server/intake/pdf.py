"""PDFs, rendered in processes of their own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from dataclasses import dataclass
from typing import Any

from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.source_page import Rgb, SourcePage
from ocr_server.intake.workers import WorkerLost, Workers, WorkerTimeout


class PdfFile:
    """A PDF as a private temporary file, removed by `close` or with the object."""

    def __init__(self, data: bytes, password: str | None) -> None:
        """Writes the file, so not for the event loop. Raises OSError if there is no room for it."""
        self.password = password
        descriptor, self.path = tempfile.mkstemp(prefix="document-", suffix=".pdf")  # readable by this user only
        self._remove = weakref.finalize(self, _unlink, self.path)
        with open(descriptor, "wb") as file:
            file.write(data)

    def close(self) -> None:
        self._remove()


@dataclass(frozen=True)
class PdfInfo:
    page_count: int
    """At least 1. What the file says; a page that isn't there is found out when it is rendered."""


class PdfRenderer:
    """Opens PDFs and renders their pages."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    @property
    def timeout_s(self) -> float:
        """For each call, from when a process takes it up: seconds."""
        return self._workers.timeout_s

    async def inspect(self, file: PdfFile) -> PdfInfo:
        """What a PDF says of itself; its pages aren't looked at.

        Raises:
            PdfError: password_required, password_wrong, damaged, empty; timeout; failed if the process died.
            Unavailable: no process can be started.
        """
        count, _ = await self._call(file, "count_pages")
        return PdfInfo(count)

    async def render(self, file: PdfFile, index: int, dpi: float, max_pixels: int) -> SourcePage:
        """One page, upright, on white, with annotations and form fields.

        Args:
            index: the page, counted from 0.
            dpi: pixels per inch.
            max_pixels: width times height; a page that would have more comes at a lower resolution.

        Raises:
            PdfError: as `inspect`; giant_page; page_failed.
            Unavailable: no process can be started.
        """
        dpi, pixels = await self._call(file, "render", index, dpi, max_pixels)
        if pixels is None:
            raise PdfError("failed")
        return SourcePage(pixels, dpi)

    def discard(self, file: PdfFile) -> None:
        """Remove a PDF that is no longer wanted, also from the processes that have it open."""
        file.close()
        self._workers.forget(file.path, "pdf_worker.forget", file.path)

    async def _call(self, file: PdfFile, function: str, *arguments: Any) -> tuple[Any, Rgb | None]:
        try:
            return await self._workers.call(file.path, f"pdf_worker.{function}", file.path, file.password, *arguments)
        except WorkerTimeout as error:
            raise PdfError("timeout") from error
        except WorkerLost as error:
            raise PdfError("failed") from error


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
