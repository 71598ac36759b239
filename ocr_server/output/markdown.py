"""The model's answer → markdown, as DeepSeek-OCR's own scripts make it: no markers, figures as links."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from deepseek_ocr.families import DEEPSEEK_OCR, Family
from ocr_server.output.blocks import is_label, may_be_label
from ocr_server.output.grounding import GroundingParser, Located, held_back
from ocr_server.output.tables import TableConverter, TableFormat

_COMMANDS = {"\\coloneqq": ":=", "\\eqqcolon": "=:"}
"""LaTeX commands that few renderers know → what they show."""
_THREE_NEWLINES = re.compile(r"\n{3,}")


def to_markdown(
    answer: str,
    *,
    figures: Sequence[str] = (),
    table_format: TableFormat = "html",
    family: Family = DEEPSEEK_OCR,
) -> str:
    """A page's answer as markdown.

    The marker of a figure becomes `![](NAME)`, for each of its boxes, NAME being the next of `figures`; where that
    is empty, or there are no more, nothing. Markers that label what follows are removed; of those around a text on
    the page that text stays (see `blocks`). Tables stay the HTML that the model writes, or become markdown. More
    than two newlines are two, and white space at the ends is removed.
    """
    stream = MarkdownStream(
        name=lambda number: figures[number - 1] if number <= len(figures) else "",
        table_format=table_format,
        family=family,
    )
    return stream.feed(answer) + stream.close()


class MarkdownStream:
    """`to_markdown` for an answer that comes in pieces: the same when put together.

    Holds back what the rest of the answer may still change: the beginning of a marker or of one of the commands,
    white space, and a table that is to become markdown, until it ends.
    """

    def __init__(
        self, *, name: Callable[[int], str], table_format: TableFormat = "html", family: Family = DEEPSEEK_OCR
    ) -> None:
        """Args:
        name: the figure's number on the page, from 1 → its name, or "" to leave it out.
        """
        self._name = name
        self._family = family
        self._figures = 0
        self._parser = GroundingParser()
        self._tables = TableConverter() if table_format == "markdown" else None
        self._tidy = _Tidy()
        self._given: list[str] = []
        self._unsure: list[str] = []
        """A marker's text that is a label if text follows, and the white space behind it."""
        self._after_located = False

    def feed(self, piece: str) -> str:
        """The markdown that is certain after `piece`."""
        for event in self._parser.feed(piece):
            self._take(event)
        return self._drain()

    def close(self) -> str:
        """The rest, when the answer ends."""
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
        """Writes the text of the marker in question, as it is no label, and the white space."""
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
            text = "\n" + text  # two texts from different places must not become one word
        self._after_located = False
        if self._tables:
            text = self._tables.feed(text)
        self._given.append(self._tidy.feed(text))

    def _drain(self) -> str:
        given, self._given = "".join(self._given), []
        return given


class _Tidy:
    """Replaces the commands and the newlines too many, and strips both ends."""

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
