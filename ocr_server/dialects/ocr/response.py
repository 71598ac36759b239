"""Turns the pages of a session into pages as Mistral's OCR API has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ocr_server.dialects.ocr.wire import (
    OcrBlock,
    OcrBlockConfidence,
    OcrDimensions,
    OcrImage,
    OcrPage,
    OcrPageConfidence,
    OcrParameters,
    OcrTable,
    OcrUsage,
    OcrWord,
)
from ocr_server.dialects.page_report import jpeg_uri, page_report
from ocr_server.output.artifacts import Figure, PageArtifacts, artifacts_of
from ocr_server.output.blocks import Block, PixelBox
from ocr_server.output.confidence import confidence, words
from ocr_server.output.formats.overlay import PICTURE_DPI
from ocr_server.output.markdown import to_markdown
from ocr_server.output.tables import html_tables, html_tables_to_markdown
from ocr_server.reading.page import PageReading
from ocr_server.session import Session

TYPES = {
    "title": "title",
    "sub_title": "title",
    "list": "list",
    "table": "table",
    "image": "image",
    "figure": "image",
    "caption": "caption",
    "image_caption": "caption",
    "figure_caption": "caption",
    "table_caption": "caption",
    "equation": "equation",
    "formula": "equation",
    "code": "code",
    "header": "header",
    "footer": "footer",
    "page_number": "footer",
    "references": "references",
    "aside_text": "aside_text",
}
"""DeepSeek-OCR's label → Mistral's block type. All other labels are text."""


class OcrPages:
    """The pages of the answer to one request, in order."""

    def __init__(self, parameters: OcrParameters, session: Session) -> None:
        self._parameters = parameters
        self._session = session
        self._family = session.plan.family
        self._figures_left = parameters.image_limit
        self.usage = OcrUsage(
            pages_processed=0, doc_size_bytes=session.size_bytes, prompt_tokens=0, completion_tokens=0
        )

    async def pages(self) -> AsyncGenerator[tuple[PageReading, OcrPage]]:
        """Read all pages and yield them in order. Closes the session."""
        async with aclosing(self._session.events()) as events:
            async for event in events:
                if isinstance(event, PageReading):
                    yield event, self.page(event)

    def page(self, reading: PageReading) -> OcrPage:
        """Return the wire type of a page: what it contains, or the error if it could not be read."""
        self.usage.pages_processed += 1
        self.usage.prompt_tokens += reading.prompt_tokens
        self.usage.completion_tokens += reading.completion_tokens
        artifacts = artifacts_of(reading)
        parameters, report = self._parameters, page_report(reading)
        answer, headers, footers = self._without_headers(reading.text(), artifacts.blocks)
        figures = self._figures(artifacts.figures)
        markdown = to_markdown(answer, figures=[figure.name for figure in artifacts.figures], family=self._family)
        markdown = _linked(markdown, artifacts.figures, kept=figures)
        tables: list[OcrTable] = []
        if parameters.table_format is not None:
            markdown, tables = _tables_apart(markdown, reading.number + 1, as_html=parameters.table_format == "html")
        else:
            markdown = html_tables_to_markdown(markdown)
        box = (0, 0, reading.width, reading.height)
        return OcrPage(
            index=reading.number,
            markdown=markdown,
            images=[_image(figure) for figure in figures],
            tables=tables,
            hyperlinks=[],
            header="\n".join(headers) or None,
            footer="\n".join(footers) or None,
            dimensions=OcrDimensions(dpi=round(reading.dpi or PICTURE_DPI), height=reading.height, width=reading.width)
            if reading.width
            else None,
            confidence_scores=self._page_confidence(markdown, reading, artifacts),
            blocks=None if parameters.include_blocks is False else self._blocks(artifacts, figures, tables, box),
            finish_reason=report.finish_reason,
            error=report.error,
        )

    def _without_headers(self, answer: str, blocks: Sequence[Block]) -> tuple[str, list[str], list[str]]:
        """Return the answer without the headers and footers that the request wants separately, and those texts."""
        kept, end = [], 0
        apart: dict[str, list[str]] = {"header": [], "footer": []}
        wanted = {"header": self._parameters.extract_header, "footer": self._parameters.extract_footer}
        for block in blocks:
            kind = TYPES.get(block.label, "text")
            if wanted.get(kind):
                apart[kind].append(block.text)
                kept.append(answer[end : block.start])
                end = block.end
        return "".join(kept) + answer[end:], apart["header"], apart["footer"]

    def _figures(self, figures: Sequence[Figure]) -> list[Figure]:
        """Return the figures that are large enough and within the limit."""
        least = max(1, self._parameters.image_min_size or 0)
        large = [figure for figure in figures if min(figure.size) >= least]
        if self._figures_left is not None:
            large = large[: self._figures_left]
            self._figures_left -= len(large)
        return large

    def _blocks(
        self, artifacts: PageArtifacts, figures: Sequence[Figure], tables: Sequence[OcrTable], page: PixelBox
    ) -> list[OcrBlock]:
        names = {figure.box: figure.name for figure in figures}
        table_ids = iter(table.id for table in tables)
        scored = self._parameters.confidence_scores_granularity == "block"
        made = []
        for block in artifacts.blocks:
            kind = TYPES.get(block.label, "text")
            image_id = names.get(block.boxes[0]) if kind == "image" and block.boxes else None
            if kind == "image" and image_id is None:
                continue  # excluded by its size or by the limit
            left, top, right, bottom = _around(block.boxes) if block.boxes else page
            made.append(
                OcrBlock(
                    type=kind,
                    top_left_x=left,
                    top_left_y=top,
                    bottom_right_x=right,
                    bottom_right_y=bottom,
                    content=block.text,
                    image_id=image_id,
                    table_id=next(table_ids, None) if kind == "table" else None,
                    confidence_scores=_block_confidence(artifacts, block) if scored else None,
                )
            )
        return made

    def _page_confidence(
        self, markdown: str, reading: PageReading, artifacts: PageArtifacts
    ) -> OcrPageConfidence | None:
        granularity = self._parameters.confidence_scores_granularity
        whole = confidence(artifacts.spans)
        if granularity is None or whole is None:
            return None
        average, minimum, scores = *whole, None
        if granularity == "word":
            found = words(markdown, reading.text(), artifacts.spans)
            scores = [OcrWord(text=word.text, confidence=word.confidence, start_index=word.start) for word in found]
            if found:
                average = sum(word.confidence for word in found) / len(found)
                minimum = min(word.confidence for word in found)
        return OcrPageConfidence(
            average_page_confidence_score=average,
            minimum_page_confidence_score=minimum,
            word_confidence_scores=scores,
        )


def _linked(markdown: str, figures: Sequence[Figure], kept: Sequence[Figure]) -> str:
    """Return the markdown with figures linked as in Mistral's API, `![id](id)`, and without links to excluded ones."""
    for figure in figures:
        link = f"![{figure.name}]({figure.name})" if figure in kept else ""
        markdown = markdown.replace(f"![]({figure.name})", link, 1)
    return markdown


def _tables_apart(markdown: str, page: int, *, as_html: bool) -> tuple[str, list[OcrTable]]:
    """Return the markdown with a link in place of each table, and the tables."""
    tables: list[OcrTable] = []
    kept, end = [], 0
    for place in html_tables(markdown):
        html = markdown[place]
        name = f"page-{page}-table-{len(tables) + 1}.{'html' if as_html else 'md'}"
        content = html if as_html else html_tables_to_markdown(html)
        tables.append(OcrTable(id=name, content=content, format="html" if as_html else "markdown"))
        kept += [markdown[end : place.start], f"[{name}]({name})"]
        end = place.stop
    return "".join(kept) + markdown[end:], tables


def _image(figure: Figure) -> OcrImage:
    left, top, right, bottom = figure.box
    return OcrImage(
        id=figure.name,
        top_left_x=left,
        top_left_y=top,
        bottom_right_x=right,
        bottom_right_y=bottom,
        image_base64=None if figure.jpeg is None else jpeg_uri(figure.jpeg),
    )


def _block_confidence(artifacts: PageArtifacts, block: Block) -> OcrBlockConfidence:
    sure = confidence(artifacts.spans, block.start, block.end)
    return OcrBlockConfidence(
        average_content_confidence_score=None if sure is None else sure.average,
        minimum_content_confidence_score=None if sure is None else sure.minimum,
        block_type_confidence_score=None,
    )


def _around(boxes: Sequence[PixelBox]) -> PixelBox:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)
