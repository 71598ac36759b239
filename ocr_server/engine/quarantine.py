"""Finds out which page crashes the engine: pages that may do so are read one at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from ocr_server.errors import InvalidRequest
from ocr_server.reading.page import Page

MAX_SUSPECTS = 10_000
"""Maximum number of pages that are remembered."""
MAX_CRASHES = 2
"""Crashes after which a page is refused."""


class _Record(NamedTuple):
    crashes: int
    last: float
    """Time of the last crash, in seconds."""


class Suspects:
    """The pages that were being read when an engine crashed, by content, with the number of crashes of each.

    There is never more than one suspect in the engine, so a crash is the second one of at most one page, which is then
    refused. Therefore k pages that crash the engine cause at most 2 k crashes (k + 1 if all of them were being read at
    the first), and no other page is refused unless a page that was not a suspect crashes the engine during its turn.
    """

    def __init__(self, seconds: float, most: int = MAX_SUSPECTS) -> None:
        """Args:
        seconds: Time after its last crash when a page is forgotten.
        most: Number of pages that are remembered. Those whose last crash is the oldest are forgotten first.
        """
        self._seconds = seconds
        self._most = most
        self._known: OrderedDict[bytes, _Record] = OrderedDict()
        self._reading = asyncio.Lock()

    def any(self, now: float) -> bool:
        """Whether there are suspects, after forgetting those whose time is up. `now` is in seconds."""
        while self._known and next(iter(self._known.values())).last <= now - self._seconds:
            self._known.popitem(last=False)
        return bool(self._known)

    @asynccontextmanager
    async def turn(self, key: bytes) -> AsyncIterator[None]:
        """Wait until the page may be read, and hold its turn in the context. Only suspects wait, for one another.

        Args:
            key: The page's `content_key`.

        Raises:
            InvalidRequest: The page has crashed the engine, possibly while it waited here.
        """
        async with AsyncExitStack() as stack:
            self._check(key)
            if self.crashes(key):
                await stack.enter_async_context(self._reading)
                self._check(key)
                if not self.crashes(key):  # another request for the same page has been read meanwhile
                    await stack.aclose()
            yield

    def record_crash(self, keys: set[bytes], now: float) -> None:
        """Record that the engine crashed at `now` (seconds) while it read these pages."""
        for key in keys:
            self._known[key] = _Record(self.crashes(key) + 1, now)
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        self._reading = asyncio.Lock()  # whoever holds the old lock is not in the engine any more

    def clear(self, key: bytes) -> None:
        """Forget a page, because it has been read to its end."""
        self._known.pop(key, None)

    def crashes(self, key: bytes) -> int:
        """Return how often the engine has crashed while it read the page."""
        return self._known[key].crashes if key in self._known else 0

    def _check(self, key: bytes) -> None:
        if self.crashes(key) >= MAX_CRASHES:
            raise InvalidRequest(
                f"The engine crashed {MAX_CRASHES} times while it read this page, so the page is refused. "
                "Try another resolution mode or prompt.",
                code="poison_page",
            )


def content_key(page: Page) -> bytes:
    """Return a hash of everything the engine is asked: image, prompt and options. Takes about 10 ms for 10 MB."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (page.image.global_view, page.image.tiles):
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy())
    digest.update(repr((page.image.grid, page.prompt, page.decoding)).encode())
    return digest.digest()
