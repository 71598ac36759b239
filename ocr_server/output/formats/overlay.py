"""`overlay`: pictures of the pages with the blocks drawn on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ocr_server.output.artifacts import Artifacts, artifacts_of
from ocr_server.output.formats.format import FinishedPage, Format, OutputFile
from ocr_server.output.overlay import to_pdf

PICTURE_DPI = 72
"""Resolution of pages whose resolution is not known, in pixels per inch."""


async def _write(pages: AsyncIterator[FinishedPage], of_document: bool) -> OutputFile:
    """Write a PDF, or a PNG for a single picture. Pages that failed are omitted."""
    drawn: list[bytes] = []
    dpi: float | None = None
    async for page in pages:
        if overlay := artifacts_of(page.reading).overlay:
            drawn.append(overlay)
            dpi = page.reading.dpi
    if not of_document:
        return OutputFile(drawn[0], "image/png")
    return OutputFile(await asyncio.to_thread(to_pdf, drawn, dpi or PICTURE_DPI), "application/pdf")


OVERLAY = Format(
    name="overlay",
    media_type="application/pdf",
    description="The pages with their blocks drawn on them, as a PDF, or as a PNG for a single picture.",
    artifacts=Artifacts(overlay=True),
    file=_write,
)
