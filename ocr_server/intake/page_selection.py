"""Which pages of a document were asked for: `1-3,7`, `5-`, or a list of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = 10_000
"""Longest selection: characters of a text, numbers of a list."""

_PART = re.compile(r"([0-9]{1,9})(?:\s*(-)\s*([0-9]{1,9})?)?")
"""`7`, `2-4` or `5-`. Nine digits: more pages than any document has."""


class TooManyPages(ValueError):
    """More pages than may be selected."""


@dataclass(frozen=True)
class Selection:
    """Pages as they were asked for, not yet held against a document."""

    ranges: tuple[tuple[int, int | None], ...]
    """First and last page of each part, both included, counted from 0; None is the document's last page."""
    first: int
    """What the asker calls the first page: 0 or 1."""
    documents_only: bool = False
    """Whether a picture, which has one page, is read whatever the selection says: for requests with several sources."""

    def resolve(self, page_count: int, *, most: int) -> list[int]:
        """The selected pages as indices from 0, in the order they were asked for, none twice.

        Takes time and memory in proportion to `most` and the length of the selection, not to the numbers in it.

        Args:
            page_count: pages that the document has, at least 1.
            most: pages that may be selected.

        Raises:
            ValueError: a selected page doesn't exist; the text is for people.
            TooManyPages: more than `most` are selected; likewise.
        """
        chosen: dict[int, None] = {}  # keeps the order
        for start, end in self.ranges:
            stop = page_count if end is None else end + 1
            if max(start + 1, stop) > page_count:
                raise ValueError(self._beyond(max(start + 1, stop), page_count))
            if stop - start <= most:  # else the range alone is too many
                chosen.update(dict.fromkeys(range(start, stop)))
            if stop - start > most or len(chosen) > most:
                raise TooManyPages(f"More than {most:,} pages are selected; the limit is {most:,}.")
        return list(chosen)

    def _beyond(self, position: int, page_count: int) -> str:
        """Why there is no page at `position`, counted from 1."""
        pages = "1 page" if page_count == 1 else f"{page_count} pages"
        counted = ", numbered from 0" if self.first == 0 else ""
        return f"Page {position - 1 + self.first} does not exist: the document has {pages}{counted}."


def parse_pages(selection: str | Sequence[int], *, first: int) -> Selection:
    """A selection of pages as a client writes it.

    Args:
        selection: `1-3,7`, where `5-` means the fifth page and all after it; or the pages' numbers.
        first: the number of the first page, 0 or 1.

    Raises:
        ValueError: it isn't of that form, or selects nothing; the text is for people.
    """
    if len(selection) > MAX_LENGTH:
        what = "characters" if isinstance(selection, str) else "numbers"
        raise ValueError(f"The selection of pages has more than {MAX_LENGTH:,} {what}.")
    if not (selection.strip() if isinstance(selection, str) else selection):
        raise ValueError("No pages are selected.")
    if isinstance(selection, str):
        ranges = [_range(part.strip(), first) for part in selection.split(",")]
    else:
        ranges = [(page, page) for page in (_index(number, first) for number in selection)]
    return Selection(tuple(ranges), first)


def _range(part: str, first: int) -> tuple[int, int | None]:
    match = _PART.fullmatch(part)
    if match is None:
        shown = part if len(part) <= 20 else part[:20] + "…"
        raise ValueError(f"{shown!r} is neither a page nor a range of pages. A selection looks like 1-3,7,9-.")
    number, dash, last = match.groups()
    start = _index(int(number), first)
    if dash is None:
        return start, start
    if last is None:
        return start, None
    end = _index(int(last), first)
    if end < start:
        raise ValueError(f"The range {number}-{last} is reversed: write {last}-{number}.")
    return start, end


def _index(number: int, first: int) -> int:
    """A page's number as its index from 0."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("Pages are selected by whole numbers.")
    if number < first:
        raise ValueError(f"There is no page {number}: pages are numbered from {first}.")
    return number - first
