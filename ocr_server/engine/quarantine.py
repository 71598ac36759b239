"""Pages that may be what kills the engine: they are read one at a time until that is known of each."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from ocr_server.errors import InvalidRequest
from ocr_server.reading.page import Page

MOST_SUSPECTS = 10_000
DEATHS_OF_POISON = 2


class _Suspicion(NamedTuple):
    deaths: int
    last: float


class Suspects:
    """Pages that were being read when an engine died: how many times, for each, by content.

    Since there is never more than one suspect in the engine, a death gives at most one page its second mark, and with
    it the blame. So k pages that kill cost at most 2 k deaths (k + 1 if all were being read at the first), and no
    other page is refused unless a killer that had never been seen strikes during that page's turn.
    """

    def __init__(self, seconds: float, most: int = MOST_SUSPECTS) -> None:
        """Args:
        seconds: after which a page is forgotten.
        most: pages remembered; beyond, those with the oldest deaths are forgotten first.
        """
        self._seconds = seconds
        self._most = most
        self._known: OrderedDict[bytes, _Suspicion] = OrderedDict()
        self._reading = asyncio.Lock()

    def any(self, now: float) -> bool:
        while self._known and next(iter(self._known.values())).last <= now - self._seconds:
            self._known.popitem(last=False)
        return bool(self._known)

    @asynccontextmanager
    async def turn(self, key: bytes) -> AsyncIterator[None]:
        """The time in which this page may be read: at once, but suspects one after another, as they come.

        Raises:
            InvalidRequest: it is to blame, or has turned out to be while it waited.
        """
        async with AsyncExitStack() as stack:
            self._check(key)
            if self.deaths(key):
                await stack.enter_async_context(self._reading)
                self._check(key)
                if not self.deaths(key):  # the same page has been read meanwhile
                    await stack.aclose()
            yield

    def record_crash(self, keys: set[bytes], now: float) -> None:
        """The engine has died, and these were being read."""
        for key in keys:
            self._known[key] = _Suspicion(self.deaths(key) + 1, now)
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        self._reading = asyncio.Lock()  # whoever had the other is not in the engine any more, even if it is slow to go

    def clear(self, key: bytes) -> None:
        """This one has been read to its end."""
        self._known.pop(key, None)

    def deaths(self, key: bytes) -> int:
        return self._known[key].deaths if key in self._known else 0

    def _check(self, key: bytes) -> None:
        if self.deaths(key) >= DEATHS_OF_POISON:
            raise InvalidRequest(
                f"The engine stopped working {DEATHS_OF_POISON} times while it read this page, so it is not read "
                "again. Another resolution mode or prompt may do.",
                code="poison_page",
            )


def content_key(page: Page) -> bytes:
    """The same for pages that ask the engine the same: about 10 ms for a page of 10 MB."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (page.image.global_view, page.image.tiles):
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy())
    digest.update(repr((page.image.grid, page.prompt, page.decoding)).encode())
    return digest.digest()
