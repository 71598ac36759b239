"""Converts HTML tables, as the model writes them, to GitHub-flavoured markdown.

Only the tags of tables are parsed. Everything else in a cell is kept unchanged, including `a<b` and `&lt;`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

TableFormat = Literal["html", "markdown"]
"""How tables are written in the markdown of a page."""

MAX_CELLS = 100_000
"""Maximum number of cells of a table, including the cells that spans and padding add. Larger tables stay HTML."""
MAX_SPAN = 1000
"""Maximum colspan and rowspan. Larger values count as 1, as browsers do for columns."""

# The length of a tag is limited, and with it the amount of text that has to be held back.
_ATTRIBUTES = r"(?:[\s/][^<>]{0,1000})?"
_TABLE_TAG = re.compile(rf"<(/?)table{_ATTRIBUTES}>", re.IGNORECASE)
_TAG = re.compile(rf"<(/?)(table|caption|thead|tbody|tfoot|tr|td|th|colgroup|col)({_ATTRIBUTES})>", re.IGNORECASE)
_SPAN = re.compile(r"""(?<![\w-])(col|row)span\s*=\s*["']?\s*([0-9]+)""", re.IGNORECASE)
_UNFINISHED_TAG = re.compile(r"</?(?:t(?:a(?:b(?:l(?:e(?:[\s/][^<>]{0,1000})?)?)?)?)?)?", re.IGNORECASE)


@dataclass(slots=True)
class _Cell:
    columns: int
    rows: int
    text: list[str] = field(default_factory=list)


def html_tables_to_markdown(text: str) -> str:
    """Convert every `<table>…</table>` in `text` to a markdown table, separated from the text by empty lines.

    The first row becomes the header. Cells that span several columns or rows are followed by empty cells. Captions and
    other text outside the cells are placed before the table. A table stays unchanged if it has no end, no cells, more
    than `MAX_CELLS` cells or another table inside it.
    """
    converter = TableConverter()
    return converter.feed(text) + converter.close()


def html_tables(text: str) -> Iterator[slice]:
    """Yield the position of each table in `text`, in order. A nested table is part of the outer one."""
    depth = start = 0
    for tag in _TABLE_TAG.finditer(text):
        if not tag[1]:
            start = start if depth else tag.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                yield slice(start, tag.end())


class TableConverter:
    """Like `html_tables_to_markdown`, for text that arrives in pieces. The concatenated output is the same.

    A table is held back until its end.
    """

    def __init__(self) -> None:
        self._tail = ""
        self._table: list[str] = []
        """The pieces of the current table, unless it is known to stay HTML."""
        self._depth = 0
        self._newlines = 2
        """Number of newlines at the end of the output, at most 2. The beginning of the text counts as an empty line."""
        self._owed = 0
        """Number of newlines that the next text has to begin with."""

    def feed(self, piece: str) -> str:
        """Add a piece of the text, and return the output that is final."""
        data = self._tail + piece
        given = []
        at = 0
        for tag in _TABLE_TAG.finditer(data):
            given.append(self._up_to(data[at : tag.start()]))
            given.append(self._take_tag(tag.group(), closing=bool(tag[1])))
            at = tag.end()
        end = data.rfind("<", at)
        if end < 0 or not _UNFINISHED_TAG.fullmatch(data, end):
            end = len(data)
        given.append(self._up_to(data[at:end]))
        self._tail = data[end:]
        return "".join(given)

    def close(self) -> str:
        """End the text, and return the rest of the output. A table without an end stays HTML."""
        rest = "".join([*self._table, self._tail])
        self._table, self._tail, self._depth = [], "", 0
        return self._give(rest)

    def _up_to(self, text: str) -> str:
        if self._table:
            self._table.append(text)
            return ""
        return self._give(text)

    def _take_tag(self, tag: str, *, closing: bool) -> str:
        if not closing:
            self._depth += 1
            if self._depth == 1:
                self._table = [tag]
                return ""
            html = "".join([*self._table, tag])  # a nested table: both stay HTML
            self._table = []
            return self._give(html)
        self._depth = max(self._depth - 1, 0)
        if not self._table:
            return self._give(tag)
        html = "".join([*self._table, tag])
        self._table = []
        markdown = _to_markdown(html)
        if markdown is None:
            return self._give(html)
        empty_line = "\n" * (2 - self._newlines)
        self._newlines, self._owed = 0, 2
        return empty_line + markdown

    def _give(self, text: str) -> str:
        if not text:
            return ""
        leading = len(text) - len(text.lstrip("\n"))
        if leading < len(text):
            added, self._owed = max(self._owed - leading, 0), 0
            self._newlines = min(len(text) - len(text.rstrip("\n")), 2)
        else:
            added, self._owed = 0, max(self._owed - leading, 0)
            self._newlines = min(self._newlines + leading, 2)
        return "\n" * added + text


def _to_markdown(html: str) -> str | None:
    """Convert a single table, including its tags. Return None if it has to stay HTML."""
    loose, rows = _cells(html)
    grid = _grid(rows)
    if not grid:
        return None
    lines = [f"| {' | '.join(row)} |" for row in grid]
    lines.insert(1, f"|{' --- |' * len(grid[0])}")
    before = _one_line(loose)
    return (f"{before}\n\n" if before else "") + "\n".join(lines)


def _cells(html: str) -> tuple[str, list[list[_Cell]]]:
    """Return the text outside the cells, and the cells of each row. A cell or row without end tag ends at the next."""
    loose: list[str] = []
    rows: list[list[_Cell]] = []
    row: list[_Cell] | None = None
    into = loose
    at = 0
    for tag in _TAG.finditer(html):
        into.append(html[at : tag.start()])
        at = tag.end()
        name = tag[2].lower()
        into = loose
        if name in ("td", "th"):
            if not tag[1]:
                if row is None:
                    rows.append(row := [])
                cell = _cell(tag[3])
                row.append(cell)
                into = cell.text
        else:
            loose.append(" ")
            row = None
            if name == "tr" and not tag[1]:
                rows.append(row := [])
    return "".join(loose), rows


def _cell(attributes: str) -> _Cell:
    spans = {match[1].lower(): _span(match[2]) for match in _SPAN.finditer(attributes)}
    return _Cell(spans.get("col", 1), spans.get("row", 1))


def _span(digits: str) -> int:
    span = int(digits[:9])
    return span if 1 <= span <= MAX_SPAN else 1


def _grid(rows: list[list[_Cell]]) -> list[list[str]] | None:
    """Return the texts of all cells as a rectangular grid, in which spans and short rows are padded with empty cells.
    Return None if it is too large."""
    grid: list[list[str]] = []
    below: list[int] = []  # for each column, the number of further rows that the cell above spans
    for cells in rows:
        row: list[str] = []
        for cell in cells:
            while len(row) < len(below) and below[len(row)]:
                row.append("")
                below[len(row) - 1] -= 1
            if (len(row) + cell.columns) * (len(grid) + 1) > MAX_CELLS:
                return None
            column = len(row)
            row += [_one_line("".join(cell.text)).replace("|", "\\|"), *[""] * (cell.columns - 1)]
            below += [0] * (len(row) - len(below))
            below[column : len(row)] = [cell.rows - 1] * cell.columns
        while len(row) < len(below):
            row.append("")
            below[len(row) - 1] = max(below[len(row) - 1] - 1, 0)
        if row:
            grid.append(row)
        if len(below) * len(grid) > MAX_CELLS:
            return None
    return [row + [""] * (len(below) - len(row)) for row in grid]


def _one_line(text: str) -> str:
    return " ".join(filter(None, map(str.strip, text.splitlines())))
