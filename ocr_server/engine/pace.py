"""How often pieces of text are taken from the engine.

To carry a piece from the engine to a client takes the API process about as long for one token as for ten, and vLLM
joins what has not been fetched. So few streams get every token at once, and many get several at a time.
"""

from __future__ import annotations

import asyncio

PIECES_PER_SECOND = 250
"""Of all pages together, about."""
LONGEST_WAIT = 0.1
"""Seconds; a reader does not notice them."""


class Pace:
    """Shared by all pages that are being read."""

    def __init__(self) -> None:
        self._pages = 0

    def page(self) -> PagePace:
        return PagePace(self)

    @property
    def interval(self) -> float:
        """Seconds between two pieces of a page."""
        return min(self._pages / PIECES_PER_SECOND, LONGEST_WAIT)


class PagePace:
    """One page's; enter it while the page is read."""

    def __init__(self, shared: Pace) -> None:
        self._shared = shared
        self._last = 0.0

    def __enter__(self) -> PagePace:
        self._shared._pages += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._shared._pages -= 1

    async def wait(self) -> None:
        """After a piece, wait for more to be worth fetching, if it came soon after the one before it."""
        now = asyncio.get_running_loop().time
        interval = self._shared.interval
        if now() - self._last < interval:
            await asyncio.sleep(interval)
        self._last = now()
