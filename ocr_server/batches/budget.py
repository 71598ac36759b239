"""How much of all batches is under way at a time."""

from __future__ import annotations

import asyncio


class RequestBudget:
    """Requests, and the bytes of their bodies. Who comes first, enters first, so that batches take turns."""

    def __init__(self, *, requests: int, size: int) -> None:
        """Args:
        size: bytes; a request that is larger enters alone.
        """
        self._most_requests, self._most_bytes = requests, size
        self._requests = self._bytes = 0
        self._door = asyncio.Lock()
        self._left = asyncio.Event()

    async def enter(self, size: int) -> None:
        async with self._door:
            while self._requests >= self._most_requests or (self._requests and self._bytes + size > self._most_bytes):
                self._left.clear()
                await self._left.wait()
            self._requests += 1
            self._bytes += size

    def leave(self, size: int) -> None:
        self._requests -= 1
        self._bytes -= size
        self._left.set()
