"""`markdown`: the pages as markdown without markers, with links to figures."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ocr_server.output.formats.format import FinishedPage, Format, OutputFile, PageText, TextOptions
from ocr_server.output.markdown import MarkdownStream
from ocr_server.reading.reader import PAGE_SEPARATOR


def markdown_text(options: TextOptions) -> PageText:
    """Return the converter for the markdown of one page."""
    return MarkdownStream(name=options.figure_name, table_format=options.table_format, family=options.family)


async def _write(pages: AsyncIterator[FinishedPage], _: bool) -> OutputFile:
    return OutputFile(PAGE_SEPARATOR.join([page.markdown async for page in pages]), "text/markdown")


MARKDOWN = Format(
    name="markdown",
    media_type="text/markdown",
    description="Markdown without markers, with links to figures.",
    text=markdown_text,
    file=_write,
    options=frozenset({"table_format"}),
)
