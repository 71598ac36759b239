"""Joins the texts of pages to the text of an answer, piece by piece."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from ocr_server.dialects.blocks_json import BlocksJson
from ocr_server.dialects.page_report import PageReport
from ocr_server.dialects.text_options import OcrOptions
from ocr_server.output.figures import figure_name
from ocr_server.output.formats import PageText, TextOptions
from ocr_server.output.tables import TableFormat
from ocr_server.reading.reader import PAGE_SEPARATOR, Event, Opened, Piece
from ocr_server.session import Session

FIGURES_FOLDER = "images/"
"""Prefix of figure names in markdown links, as in DeepSeek's own scripts."""


class PageTexts:
    """The texts of an answer, one for each choice."""

    def __init__(
        self, options: OcrOptions, session: Session, *, blocks: BlocksJson | None, choices: int = 1, copies: int = 1
    ) -> None:
        """Args:
        blocks: What writes the blocks as JSON, which is then the text; None if the text is that of the pages.
        choices: Number of choices in the answer.
        copies: Number of choices that repeat each choice of the engine.
        """
        self._choices = choices
        self._copies = copies
        self._numbers = [job.number for job in session.jobs]
        """For each page of the answer: its index in its document, from 0."""
        self._family = session.plan.family
        self._format = session.plan.text
        self._table_format: TableFormat = options.table_format or "html"
        self._separator = PAGE_SEPARATOR if options.page_separator is None else options.page_separator
        self._blocks = blocks
        self.has_reports = bool(session.jobs) and (
            not self._format.verbatim or session.plan.show_pages or session.is_document or len(session.jobs) > 1
        )
        """Whether the answer contains a report on each page."""
        self._page = defaultdict[int, int](int)
        """For each choice: the page that its text has reached."""
        self._texts_of: dict[int, PageText] = {}
        """For each choice: the writer of the page that is being read."""

    def of(self, event: Event, report: PageReport | None) -> Iterator[tuple[int, str]]:
        """Yield what an event adds to the text of each choice: pairs of a choice and a text, which can be empty.

        Args:
            report: The report on the page if the event is its end.
        """
        if isinstance(event, Opened):
            return
        if isinstance(event, Piece):
            if self._blocks is not None:
                return
            for choice in self.choices_of(event.delta.choice):
                yield choice, self._reach(choice, event.page) + self._written(choice, event.page, event.delta.text)
            return
        if self._blocks is not None:
            assert report is not None, "blocks as JSON are written from reports"
            yield from self._json_texts(report, self._blocks)
            return
        for choice in range(self._choices):
            text = self._reach(choice, event.index)
            if (stream := self._texts_of.pop(choice, None)) is not None:
                text += stream.close()
            yield choice, text

    def choices_of(self, choice: int) -> range:
        """Return the choices of the answer that a choice of the engine's stands for."""
        return range(choice, choice + self._copies)

    def _json_texts(self, report: PageReport, kept: BlocksJson) -> Iterator[tuple[int, str]]:
        """Yield the pieces of one JSON document over all pages: `{"pages": [`, the pages, `]}`."""
        (page,) = kept.keep({"pages": [report.model_dump(mode="json")]}).get("pages", [None])
        text = '{"pages": [' if report.index == 0 else ", "
        text += json.dumps(page, ensure_ascii=False)
        if report.index == len(self._numbers) - 1:
            text += "]}"
        for choice in range(self._choices):
            yield choice, text

    def _reach(self, choice: int, page: int) -> str:
        """Return the separators between the text of a choice and `page`."""
        further = page - self._page[choice]
        self._page[choice] = page
        return self._separator * further

    def _written(self, choice: int, page: int, text: str) -> str:
        if choice not in self._texts_of:
            assert self._format.text is not None, "the wire type allows text formats only"
            number = self._numbers[page] + 1
            self._texts_of[choice] = self._format.text(
                TextOptions(
                    figure_name=lambda figure: FIGURES_FOLDER + figure_name(number, figure),
                    table_format=self._table_format,
                    family=self._family,
                )
            )
        return self._texts_of[choice].feed(text)
