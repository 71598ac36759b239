"""Finds out which page crashes the engine: pages that may do so are read one at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import IntEnum
from typing import NamedTuple

from ocr_server.errors import InvalidRequest
from ocr_server.reading.page import Page

MAX_SUSPECTS = 10_000
"""Maximum number of pages that are remembered."""


class Evidence(IntEnum):
    """How much the end of an engine says against the pages that it was reading."""

    WEAK = 1
    """The engine was killed or stopped from outside, the machine was short of memory, or it hung while it read several
    pages. Such trouble comes back whatever is read, so four times are needed for a page to be refused."""
    STRONG = 2
    """The engine crashed by itself, or hung while the page was the only one. Two times are enough."""


REFUSED = 2 * Evidence.STRONG
"""The sum of evidence from which a page is refused."""


class _Record(NamedTuple):
    evidence: int
    """Sum of the evidence against the page."""
    last: float
    """Time of the last crash, in seconds."""


class Suspects:
    """The pages that were being read when an engine crashed or hung, by content, with the evidence against each.

    There is never more than one suspect in the engine, so a crash is the second one of at most one page, which is then
    refused if both were strong evidence. Therefore k pages that crash the engine cause at most 2 k crashes (k + 1 if
    all of them were being read at the first), and no other page is refused unless a page that was not a suspect crashes
    the engine during its turn.
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
            InvalidRequest: The page is refused, possibly because of a crash while it waited here.
        """
        async with AsyncExitStack() as stack:
            self._check(key)
            if self.evidence(key):
                await stack.enter_async_context(self._reading)
                self._check(key)
                if not self.evidence(key):  # another request for the same page has been read meanwhile
                    await stack.aclose()
            yield

    def record_crash(self, keys: set[bytes], now: float, evidence: Evidence) -> None:
        """Record that the engine crashed or hung at `now` (seconds) while it read these pages."""
        for key in keys:
            self._known[key] = _Record(self.evidence(key) + evidence, now)
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        self._reading = asyncio.Lock()  # whoever holds the old lock is not in the engine any more

    def clear(self, key: bytes) -> None:
        """Forget a page, because it has been read to its end."""
        self._known.pop(key, None)

    def evidence(self, key: bytes) -> int:
        """Return the sum of the evidence against the page; 0 if it is no suspect."""
        return self._known[key].evidence if key in self._known else 0

    def _check(self, key: bytes) -> None:
        if self.evidence(key) >= REFUSED:
            raise InvalidRequest(
                "The engine crashed repeatedly while it read this page, so the page is refused for an hour. "
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
