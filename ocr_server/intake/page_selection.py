"""Parses and resolves selections of pages: `1-3,7`, `5-`, or a list of page numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = 10_000
"""Maximum length of a selection: characters of a string, or numbers of a list."""

_PART = re.compile(r"([0-9]{1,9})(?:\s*(-)\s*([0-9]{1,9})?)?")
"""`7`, `2-4` or `5-`. Nine digits are enough for any document."""


class TooManyPages(ValueError):
    """More pages are selected than the limit allows."""


@dataclass(frozen=True)
class Selection:
    """A parsed selection of pages, not yet resolved for a document."""

    ranges: tuple[tuple[int, int | None], ...]
    """First and last page of each part, inclusive, as indices from 0; None is the last page of the document."""
    first: int
    """Number that the client gives to the first page: 0 or 1."""
    documents_only: bool = False
    """Whether the selection is ignored for pictures, which have one page. For requests with several sources."""

    def resolve(self, page_count: int, *, most: int) -> list[int]:
        """Return the selected pages as indices from 0, in the order of the selection and without duplicates.

        Takes time and memory in proportion to `most` and to the length of the selection, not to the numbers in it.

        Args:
            page_count: Number of pages of the document, at least 1.
            most: Maximum number of pages that may be selected.

        Raises:
            ValueError: A selected page does not exist. The message is meant for users.
            TooManyPages: More than `most` pages are selected. The message is meant for users.
        """
        chosen: dict[int, None] = {}  # an ordered set
        for start, end in self.ranges:
            stop = page_count if end is None else end + 1
            if max(start + 1, stop) > page_count:
                raise ValueError(self._beyond(max(start + 1, stop), page_count))
            if stop - start <= most:  # otherwise the range alone exceeds the limit
                chosen.update(dict.fromkeys(range(start, stop)))
            if stop - start > most or len(chosen) > most:
                raise TooManyPages(f"More than {most:,} pages are selected; the limit is {most:,}.")
        return list(chosen)

    def _beyond(self, position: int, page_count: int) -> str:
        """Return the message for a page that does not exist: the one at `position`, counted from 1."""
        pages = "1 page" if page_count == 1 else f"{page_count} pages"
        counted = ", numbered from 0" if self.first == 0 else ""
        return f"Page {position - 1 + self.first} does not exist: the document has {pages}{counted}."


def parse_pages(selection: str | Sequence[int], *, first: int) -> Selection:
    """Parse a selection of pages as a client writes it.

    Args:
        selection: A string such as `1-3,7`, in which `5-` means page 5 and all after it; or a list of page numbers.
        first: Number of the first page, 0 or 1.

    Raises:
        ValueError: The selection does not have this form, or is empty. The message is meant for users.
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
        raise ValueError(f"{shown!r} is not a page number or a range of pages. An example of a selection is 1-3,7,9-.")
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
    """Return the index, from 0, of the page with this number."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("Page numbers must be whole numbers.")
    if number < first:
        raise ValueError(f"There is no page {number}: pages are numbered from {first}.")
    return number - first
