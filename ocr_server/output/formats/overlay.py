"""`overlay`: the pages with their blocks drawn on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ocr_server.output.artifacts import Artifacts, artifacts_of
from ocr_server.output.formats.format import File, FinishedPage, Format
from ocr_server.output.overlay import to_pdf

PICTURE_DPI = 72
"""Resolution of pages that have none of their own, pixels per inch."""


async def _write(pages: AsyncIterator[FinishedPage], of_document: bool) -> File:
    """A PDF, or a PNG for a single picture. Pages that failed are left out."""
    drawn: list[bytes] = []
    dpi: float | None = None
    async for page in pages:
        if overlay := artifacts_of(page.reading).overlay:
            drawn.append(overlay)
            dpi = page.reading.dpi
    if not of_document:
        return File(drawn[0], "image/png")
    return File(await asyncio.to_thread(to_pdf, drawn, dpi or PICTURE_DPI), "application/pdf")


OVERLAY = Format(
    name="overlay",
    media_type="application/pdf",
    description="The pages with their blocks drawn on them: a PDF, or a PNG for a single picture.",
    artifacts=Artifacts(overlay=True),
    file=_write,
)
