"""`overlay`: pictures of the pages with the blocks drawn on them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator

from ocr_server.output.artifacts import Artifacts, artifacts_of
from ocr_server.output.formats.format import FinishedPage, Format, OutputFile
from ocr_server.output.overlay import PdfOfPictures

PICTURE_DPI = 72
"""Resolution of pages whose resolution is not known, in pixels per inch."""


async def _write(pages: AsyncIterator[FinishedPage], of_document: bool) -> OutputFile:
    """Write a PDF, or a PNG for a single picture. Pages that failed are omitted."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed when it has been sent)
    try:
        pdf = PdfOfPictures(file) if of_document else None
        async for page in pages:
            reading = page.reading
            if not (overlay := artifacts_of(reading).overlay):
                continue
            if pdf is None:
                return OutputFile(overlay, "image/png")
            points = 72 / (reading.dpi or PICTURE_DPI)
            await asyncio.to_thread(pdf.add, overlay, width=reading.width * points, height=reading.height * points)
        assert pdf is not None, "a picture that cannot be read is an error of the request"
        await asyncio.to_thread(pdf.end)
        file.seek(0)
        return OutputFile(file, "application/pdf")
    except BaseException:
        file.close()
        raise


OVERLAY = Format(
    name="overlay",
    media_type="application/pdf",
    description="The pages with their blocks drawn on them, as a PDF, or as a PNG for a single picture.",
    artifacts=Artifacts(overlay=True),
    file=_write,
)
