"""Page selections such as `1-3,7,9-`, counted from 1, and their form in the API, which counts from 0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ocr_server.intake.page_selection import parse_pages

MAX_PAGES = 100_000
"""Maximum number of pages in one range of a selection."""


@dataclass(frozen=True)
class PageSelection:
    """Selected pages, by their index in the document, counted from 0. By default, all pages."""

    pages: frozenset[int] = frozenset()
    """Pages that are selected individually."""
    open_from: int | None = 0
    """First page of an open range, which selects all pages from there on. None if there is no open range."""

    def indices(self, page_count: int | None) -> list[int] | None:
        """Return the selected pages in ascending order.

        Args:
            page_count: number of pages in the document, or None if it is not known yet.

        Returns:
            None if the selection has an open range and the page count is not known.
        """
        if self.open_from is None:
            return sorted(self.pages)
        if page_count is None:
            return None
        return sorted(self.pages | set(range(self.open_from, page_count)))

    def page_count(self, selected: int) -> int | None:
        """Return the number of pages in a document of which `selected` pages are selected.

        Returns:
            None if the selection has no open range, because any page count is possible then.
        """
        if self.open_from is None:
            return None
        return self.open_from + selected - sum(index < self.open_from for index in self.pages)

    def to_api(self) -> str | None:
        """Return the selection in the form of the API's `pages` parameter, counted from 0, or None for all pages."""
        if self.open_from is None:
            return format_ranges(self.pages)
        if self.open_from == 0:
            return None
        before = format_ranges(index for index in self.pages if index < self.open_from)
        return f"{before},{self.open_from}-" if before else f"{self.open_from}-"


def parse_selection(text: str) -> PageSelection:
    """Parse a selection as users write it, such as `1-3,7,9-`, by the server's own rules.

    Raises:
        ValueError: if `text` is not a valid selection. The message is meant for users.
    """
    pages: set[int] = set()
    open_from: int | None = None
    for first, last in parse_pages(text, first=1).ranges:
        if last is None:
            open_from = first if open_from is None else min(open_from, first)
        elif last - first >= MAX_PAGES:
            raise ValueError(f"The range {first + 1}-{last + 1} has more than {MAX_PAGES:,} pages.")
        else:
            pages.update(range(first, last + 1))
    return PageSelection(frozenset(pages), open_from)


def format_ranges(numbers: Iterable[int]) -> str:
    """Return numbers as comma-separated ranges: `0,2-4` for 0, 2, 3 and 4."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
