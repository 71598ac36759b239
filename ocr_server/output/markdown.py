"""Converts the model's answer to markdown as DeepSeek-OCR's own scripts do: without markers, with links to figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.output.blocks import is_label, may_be_label
from ocr_server.output.grounding import GroundingParser, Located, held_back
from ocr_server.output.tables import TableConverter, TableFormat

_COMMANDS = {"\\coloneqq": ":=", "\\eqqcolon": "=:"}
"""LaTeX commands that few renderers support → their replacements."""
_THREE_NEWLINES = re.compile(r"\n{3,}")


def to_markdown(
    answer: str,
    *,
    figures: Sequence[str] = (),
    table_format: TableFormat = "html",
    family: Family = DEEPSEEK_OCR,
) -> str:
    """Convert the answer for one page to markdown.

    - For each box of a figure, its marker is replaced by `![](NAME)`, where NAME is the next of `figures`. If that name
      is empty or there are no more names, the figure is omitted.
    - A marker with a label is removed. Of a marker with text, the text is kept (see `blocks`).
    - More than two consecutive newlines become two. Leading and trailing white space is removed.

    Args:
        answer: The model's answer.
        figures: File names of the figures, in order.
        table_format: Whether tables stay HTML, as the model writes them, or are converted to markdown.
        family: The family of the model, which defines the labels.
    """
    stream = MarkdownStream(
        name=lambda number: figures[number - 1] if number <= len(figures) else "",
        table_format=table_format,
        family=family,
    )
    return stream.feed(answer) + stream.close()


class MarkdownStream:
    """Like `to_markdown`, for an answer that arrives in pieces. The concatenated output is the same.

    Text that may still change is held back: the beginning of a marker or of one of the commands, white space, and, if
    tables are converted, a table until its end.
    """

    def __init__(
        self, *, name: Callable[[int], str], table_format: TableFormat = "html", family: Family = DEEPSEEK_OCR
    ) -> None:
        """Args:
        name: Maps the number of a figure on the page, counted from 1, to its file name, or to "" to omit it.
        table_format: As for `to_markdown`.
        family: As for `to_markdown`.
        """
        self._name = name
        self._family = family
        self._figures = 0
        self._parser = GroundingParser()
        self._tables = TableConverter() if table_format == "markdown" else None
        self._tidy = _Tidy()
        self._given: list[str] = []
        self._unsure: list[str] = []
        """The text of a marker that is a label if text follows, and the white space after the marker."""
        self._after_located = False

    def feed(self, piece: str) -> str:
        """Add a piece of the answer, and return the markdown that is final."""
        for event in self._parser.feed(piece):
            self._take(event)
        return self._drain()

    def close(self) -> str:
        """End the answer, and return the rest of the markdown."""
        for event in self._parser.close():
            self._take(event)
        self._settle()
        if self._tables:
            self._given.append(self._tidy.feed(self._tables.close()))
        self._given.append(self._tidy.close())
        return self._drain()

    def _take(self, event: str | Located) -> None:
        if isinstance(event, str):
            if self._unsure and event.isspace():
                self._unsure.append(event)
                return
            if self._unsure and is_label(self._unsure[0], event, self._family):
                self._unsure[0] = ""
            self._settle()
            self._write(event)
            return
        self._settle()
        if event.ref == self._family.figure_label:
            for _ in event.boxes:
                self._figures += 1
                if name := self._name(self._figures):
                    self._write(f"![]({name})\n")
        elif event.ref not in self._family.labels:
            self._unsure = [event.ref]
            if not may_be_label(event.ref):
                self._settle()

    def _settle(self) -> None:
        """Write the text of the undecided marker, which is not a label, and the white space after it."""
        ref, *spaces = self._unsure or [""]
        self._unsure = []
        self._write(ref.strip())
        self._after_located = self._after_located or bool(ref)
        for space in spaces:
            self._write(space)

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._after_located and not text[0].isspace():
            text = "\n" + text  # texts from different places must not become one word
        self._after_located = False
        if self._tables:
            text = self._tables.feed(text)
        self._given.append(self._tidy.feed(text))

    def _drain(self) -> str:
        given, self._given = "".join(self._given), []
        return given


class _Tidy:
    """Replaces LaTeX commands, shortens runs of newlines, and strips leading and trailing white space."""

    def __init__(self) -> None:
        self._tail = ""
        self._begun = False
        self._space: list[str] = []

    def feed(self, piece: str) -> str:
        data = self._tail + piece
        end = len(data) - held_back(data, tuple(_COMMANDS))
        data, self._tail = data[:end], data[end:]
        for command, shown in _COMMANDS.items():
            data = data.replace(command, shown)
        return self._trim(data)

    def close(self) -> str:
        rest, self._tail = self._trim(self._tail), ""
        return rest

    def _trim(self, data: str) -> str:
        body = data.strip()
        if not body:
            self._space.append(data)
            return ""
        start = data.index(body)
        self._space.append(data[:start])
        before = "".join(self._space) if self._begun else ""
        self._begun, self._space = True, [data[start + len(body) :]]
        return _THREE_NEWLINES.sub("\n\n", before + body)
