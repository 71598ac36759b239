"""Limits how many requests of all batches are processed at a time."""

from __future__ import annotations

import asyncio


class RequestBudget:
    """Limits the number of current requests and the total size of their bodies.

    Requests are admitted in the order in which they arrive, so that batches take turns.
    """

    def __init__(self, *, requests: int, size: int) -> None:
        """Args:
        requests: Maximum number of requests.
        size: Maximum total size in bytes. A larger request is admitted when there is no other.
        """
        self._max_requests, self._max_bytes = requests, size
        self._requests = self._bytes = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Wait until a request with a body of `size` bytes may start."""
        async with self._turn:
            while self._requests >= self._max_requests or (self._requests and self._bytes + size > self._max_bytes):
                self._freed.clear()
                await self._freed.wait()
            self._requests += 1
            self._bytes += size

    def leave(self, size: int) -> None:
        """End a request with a body of `size` bytes."""
        self._requests -= 1
        self._bytes -= size
        self._freed.set()
