"""Which pages of a document: `1-3,7,9-`, counted from 1 as people do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MOST_PAGES = 100_000
"""In one range of a selection."""

_PART = re.compile(r"([0-9]{1,9})(?:\s*(-)\s*([0-9]{1,9})?)?")


@dataclass(frozen=True)
class Selection:
    """Pages by their indices, which count from 0 as in the API."""

    single: frozenset[int] = frozenset()
    start: int | None = 0
    """The page from which on all are selected, if there is one."""

    def indices(self, page_count: int | None) -> list[int] | None:
        """The selected pages of a document, in its order; None if that takes a page count and there is none."""
        if self.start is None:
            return sorted(self.single)
        if page_count is None:
            return None
        return sorted(self.single | set(range(self.start, page_count)))

    def page_count(self, selected: int) -> int | None:
        """How many pages a document has of which `selected` are selected; None if that doesn't follow."""
        if self.start is None:
            return None
        return self.start + selected - sum(index < self.start for index in self.single)

    def request(self) -> str | None:
        """As the API takes it, which counts from 0; None for all pages."""
        if self.start is None:
            return ranges(self.single)
        if self.start == 0:
            return None
        before = ranges(index for index in self.single if index < self.start)
        return f"{before},{self.start}-" if before else f"{self.start}-"


def parse(text: str) -> Selection:
    """A selection as it is typed.

    Raises:
        ValueError: it isn't one; the text is for people.
    """
    single: set[int] = set()
    start: int | None = None
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is neither a page nor a range of pages, as in 1-3,7,9-")
        first, dash, last = match.groups()
        begin = int(first) - 1
        end = int(last or first) - 1
        if begin < 0:
            raise ValueError("pages are counted from 1")
        if dash and not last:
            start = begin if start is None else min(start, begin)
            continue
        if end < begin:
            raise ValueError(f"the range {first}-{last} is reversed: write {last}-{first}")
        if end - begin >= MOST_PAGES:
            raise ValueError(f"the range {first}-{last} has more than {MOST_PAGES:,} pages")
        single.update(range(begin, end + 1))
    return Selection(frozenset(single), start)


def ranges(numbers: Iterable[int]) -> str:
    """`0,2-4` for 0, 2, 3, 4."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
