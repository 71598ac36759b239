"""Limits how often text is fetched from the engine.

Passing a piece of text from the engine to a client costs the API process about the same for one token as for ten, and
vLLM joins the tokens that have not been fetched yet. So a few streams get every token at once, while many streams get
several tokens at a time.
"""

from __future__ import annotations

import asyncio

PIECES_PER_SECOND = 250
"""Pieces fetched per second for all pages together, approximately."""
LONGEST_WAIT = 0.1
"""Longest interval between two pieces of a page, in seconds. People who read along do not notice it."""


class Pace:
    """The number of pages that are being read, from which the interval between two pieces follows."""

    def __init__(self) -> None:
        self._pages = 0

    def page(self) -> PagePace:
        """Return a context manager to enter while a page is read."""
        return PagePace(self)

    @property
    def interval(self) -> float:
        """Time between two pieces of a page, in seconds."""
        return min(self._pages / PIECES_PER_SECOND, LONGEST_WAIT)


class PagePace:
    """The pace of one page. Enter it while the page is read."""

    def __init__(self, shared: Pace) -> None:
        self._shared = shared
        self._last = 0.0

    def __enter__(self) -> PagePace:
        self._shared._pages += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._shared._pages -= 1

    async def wait(self) -> None:
        """Wait before the next piece is fetched, if this one came less than `interval` after the one before it."""
        now = asyncio.get_running_loop().time
        interval = self._shared.interval
        if now() - self._last < interval:
            await asyncio.sleep(interval)
        self._last = now()
