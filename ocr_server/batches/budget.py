"""Limits how many requests of all batches are processed at a time."""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple

from ocr_server.memory import BYTES_HELD, MemoryBudget, Reservation, Use


class Place(NamedTuple):
    """The place of a request that is being processed."""

    places: int
    """Number of requests whose place it takes."""
    body: Reservation


class RequestBudget:
    """Limits the number of current requests and the memory of their bodies.

    Requests are admitted in the order in which they arrive, so that batches take turns.
    """

    def __init__(self, *, requests: int, memory: MemoryBudget) -> None:
        """Args:
        requests: Maximum number of requests.
        memory: What the bodies draw on.
        """
        self._max_requests = requests
        self._requests = 0
        self._memory = memory
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    def share(self, deaths: int) -> int:
        """Return how many places a request takes, so that a request which kills the server is found.

        All requests that were being processed when a server died are suspects. They are tried again in small groups,
        and those that were in such a group at another death, alone. The third death therefore has one suspect only.

        Args:
            deaths: Number of servers that died while they processed the request.
        """
        if deaths == 0:
            return 1
        return self._max_requests if deaths > 1 else math.ceil(self._max_requests / math.isqrt(self._max_requests))

    async def enter(self, size: int, places: int = 1) -> Place:
        """Wait until a request may start, and return what `leave` takes.

        Args:
            size: Size of its body in bytes.
            places: Number of requests whose place it takes.
        """
        async with self._turn:
            while self._requests + places > self._max_requests:
                self._freed.clear()
                await self._freed.wait()
            self._requests += places
            try:
                return Place(places, await self._memory.wait(Use.BODIES, BYTES_HELD * size))
            except BaseException:
                self._requests -= places
                raise

    def leave(self, place: Place) -> None:
        """End a request."""
        place.body.close()
        self._requests -= place.places
        self._freed.set()
