"""A page on its way through the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ocr_server.reading.page import Page

T = TypeVar("T")


class Flight:
    """A page that is being read, or that waits for its turn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.in_engine = False
        self.ended = False
        self._limit: asyncio.Timeout | None = None
        """Set while the page waits, to end the wait."""

    @property
    def waits(self) -> bool:
        """Whether the page waits, for text or for its turn, and not for its client to ask for more."""
        return self._limit is not None

    async def wait(self, coming: Awaitable[T]) -> T:
        """Return the result of `coming`. Raises TimeoutError if `end` is called first."""
        try:
            async with asyncio.timeout(None) as self._limit:
                return await coming
        finally:
            self._limit = None

    def end(self) -> None:
        """End the wait, now and in future."""
        if not self.ended:
            self.ended = True
            if self._limit is not None:
                self._limit.reschedule(asyncio.get_running_loop().time())
