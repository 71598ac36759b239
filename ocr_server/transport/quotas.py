"""What a client may use in a day. Counted in memory: a restarted server, and each of several servers, counts anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ocr_server.errors import TooMany

DAY_SECONDS = 86_400


@dataclass
class Usage:
    """What a client has used on a day."""

    day: int = 0
    """Number of the day in UTC."""
    pages: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Quota:
    """The quota of a client, with what it has used today."""

    usage: Usage
    """Shared by all quotas of the client."""
    pages: int | None
    """Pages a day. None for no limit."""
    bytes: int | None
    """Bytes of request bodies a day. None for no limit."""
    clock: Callable[[], float] = time.time

    def has_pages(self) -> bool:
        """Return whether any pages are left today."""
        return self.pages is None or self._today().pages < self.pages

    def check_pages(self, count: int) -> None:
        """Raise TooMany if fewer than `count` pages are left today."""
        if self.pages is not None and self._today().pages + count > self.pages:
            raise self._exceeded(f"{self.pages:,} pages")

    def take_pages(self, count: int) -> None:
        """Count pages as used."""
        self._today().pages += count

    def check_bytes(self, count: int) -> None:
        """Raise TooMany if fewer than `count` bytes, or none, are left today."""
        if self.bytes is not None and self._today().bytes + max(count, 1) > self.bytes:
            raise self._exceeded(f"{self.bytes // 1_000_000:,} MB of requests")

    def take_bytes(self, count: int) -> None:
        """Count bytes as used."""
        self._today().bytes += count

    def _today(self) -> Usage:
        day = int(self.clock() // DAY_SECONDS)
        if day != self.usage.day:
            self.usage.day, self.usage.pages, self.usage.bytes = day, 0, 0
        return self.usage

    def _exceeded(self, limit: str) -> TooMany:
        return TooMany(
            f"This request exceeds the daily quota of your API key, {limit}. The quota is renewed at midnight UTC.",
            code="quota_exceeded",
            retry_after=DAY_SECONDS - self.clock() % DAY_SECONDS,
        )
