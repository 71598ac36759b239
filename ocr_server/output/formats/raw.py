"""`raw`: the unmodified output of the model, including its special tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ocr_server.output.formats.format import FinishedPage, Format, OutputFile, TextOptions
from ocr_server.reading.reader import PAGE_SEPARATOR


class _RawText:
    """Passes the answer through unchanged."""

    def __init__(self, _: TextOptions) -> None:
        pass

    def feed(self, piece: str) -> str:
        return piece

    def close(self) -> str:
        return ""


async def _write(pages: AsyncIterator[FinishedPage], _: bool) -> OutputFile:
    return OutputFile(PAGE_SEPARATOR.join([page.reading.text() async for page in pages]), "text/plain")


RAW = Format(
    name="raw",
    media_type="text/plain",
    description="The unmodified output of the model, including special tokens.",
    text=_RawText,
    file=_write,
    verbatim=True,
)
