"""Limits how many requests of all batches are processed at a time."""

from __future__ import annotations

import asyncio

from ocr_server.memory import MemoryBudget, Reservation, Use

BYTES_HELD = 3
"""Bytes that a byte of a request's body takes in memory: as it is stored, parsed, and decoded."""


class RequestBudget:
    """Limits the number of current requests and the memory of their bodies.

    Requests are admitted in the order in which they arrive, so that batches take turns.
    """

    def __init__(self, *, requests: int, memory: MemoryBudget) -> None:
        """Args:
        requests: Maximum number of requests.
        memory: What the bodies draw on.
        """
        self._free = asyncio.Semaphore(requests)
        self._memory = memory

    async def enter(self, size: int) -> Reservation:
        """Wait until a request with a body of `size` bytes may start, and return what `leave` takes."""
        await self._free.acquire()
        try:
            return await self._memory.wait(Use.BODIES, BYTES_HELD * size)
        except BaseException:
            self._free.release()
            raise

    def leave(self, body: Reservation) -> None:
        """End a request."""
        body.close()
        self._free.release()
