"""`raw`: what the model said, with all of its special tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ocr_server.output.formats.format import File, FinishedPage, Format, TextOptions
from ocr_server.reading.reader import PAGE_SEPARATOR


class _RawText:
    def __init__(self, _: TextOptions) -> None:
        pass

    def feed(self, piece: str) -> str:
        return piece

    def close(self) -> str:
        return ""


async def _write(pages: AsyncIterator[FinishedPage], _: bool) -> File:
    return File(PAGE_SEPARATOR.join([page.reading.text() async for page in pages]), "text/plain")


RAW = Format(
    name="raw",
    media_type="text/plain",
    description="What the model said, verbatim.",
    text=_RawText,
    file=_write,
    verbatim=True,
)
