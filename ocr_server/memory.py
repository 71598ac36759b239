"""The memory budget: whatever the input of clients makes the server allocate is reserved here before it is allocated.

All uses share one capacity. A use that comes early in the life of a request is granted memory only while the total of
all uses is below its own share of the capacity, so that there is always some left for the later ones: work that has
been accepted can be finished, however much more arrives.

One client cannot take all of it: whoever holds little is granted memory in any case, and waiting clients take turns.

A budget belongs to one event loop and is not thread-safe.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import OrderedDict, deque
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ocr_server.errors import TooLarge, TooMany

RETRY_SECONDS = 5.0
"""`Retry-After` of requests that are refused for want of memory."""
BYTES_HELD = 3
"""Bytes that a byte of a JSON body takes in memory: as it was received, as text, and decoded."""
SHARE_OF_MACHINE = 0.25
"""Default capacity, as a fraction of the memory that this process may use. The engine and its caches need the rest."""
MIN_CAPACITY = 512_000_000
"""Least default capacity in bytes."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Use(StrEnum):
    """What memory is used for, in the order of a request's life."""

    HEADS = "heads"
    """Heads of requests, and bytes that have been received but not parsed."""
    BODIES = "bodies"
    """Bodies of requests, with what they are parsed and decoded to."""
    SOURCES = "sources"
    """Files that were fetched from URLs."""
    PIXELS = "pixels"
    """Decoded pages and their views."""
    DRAWING = "drawing"
    """Copies of pages from which figures are cut, or on which blocks are drawn."""
    ANSWERS = "answers"
    """Figures, overlays and answers that have not been sent yet."""


SHARES: dict[Use, float] = {
    Use.HEADS: 0.4,
    Use.BODIES: 0.5,
    Use.SOURCES: 0.7,
    Use.PIXELS: 0.85,
    Use.DRAWING: 0.9,
    Use.ANSWERS: 0.5,
}
"""Fraction of the capacity up to which each use is granted memory, compared with the total of all uses.

Answers exist already, and are compared with the total of all answers. Otherwise a page that was granted more memory
than there is, since no other had any, would be read in vain."""

GUARANTEED = 1 / 16
"""Fraction of the capacity that each client is granted although the total is larger than the share of the use."""
MOST = 1.25
"""Total up to which this guarantee holds, as a fraction of the capacity."""


class MemoryBudget:
    """Hands out bytes. One for each process."""

    def __init__(self, capacity: int) -> None:
        """Args:
        capacity: Total size of all reservations in bytes.
        """
        self.capacity = capacity
        self.used = dict.fromkeys(Use, 0)
        """Bytes that are reserved for each use."""
        self.refused = dict.fromkeys(Use, 0)
        """Number of reservations that were refused, for each use."""
        self.peak = 0
        """Largest total so far, in bytes."""
        self._of_client: dict[str, int] = {}
        self._waiting: dict[Use, OrderedDict[str, deque[_Wish]]] = {use: OrderedDict() for use in Use}

    @property
    def total(self) -> int:
        """Bytes that are reserved for all uses."""
        return sum(self.used.values())

    def reserve(self, use: Use, size: int = 0, client: str = "") -> Reservation:
        """Return a reservation of `size` bytes. Raises as `Reservation.grow`.

        Args:
            client: On whose behalf. Empty for no client in particular, to whom nothing is guaranteed.
        """
        reservation = Reservation(self, use, client)
        reservation.grow(size)
        return reservation

    async def wait(self, use: Use, size: int, client: str = "") -> Reservation:
        """Return a reservation of `size` bytes as soon as there is room for it. Clients take turns.

        More than the share of `use` is granted when nothing else has that use: it is then limited by the caller alone.
        Only for uses whose holders do not wait for more memory of the same use.

        Args:
            client: As in `reserve`.
        """
        reservation, waiting = Reservation(self, use, client), self._waiting[use]
        if self._is_guaranteed(client, size) or (not waiting and self._has_room(use, size)):
            self._add(reservation, size)
            return reservation
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wish = _Wish(reservation, size, turn)
        waiting.setdefault(client, deque()).append(wish)
        try:
            await turn
        except asyncio.CancelledError:
            if wish in waiting.get(client, ()):
                waiting[client].remove(wish)
                self._tidy(waiting, client)
                self._hand_out()  # those behind this one may need less
            reservation.close()
            raise
        return reservation

    def _has_room(self, use: Use, size: int) -> bool:
        return self.total + size <= SHARES[use] * self.capacity or self.used[use] == 0

    def _is_guaranteed(self, client: str, size: int) -> bool:
        """Return whether a client has so little that it is granted `size` bytes more in any case."""
        own = self._of_client.get(client, 0)
        return bool(client) and own + size <= GUARANTEED * self.capacity and self.total + size <= MOST * self.capacity

    def _check(self, reservation: Reservation, size: int) -> None:
        use = reservation.use
        most = SHARES[use] * self.capacity
        total = self.used[use] if use is Use.ANSWERS else self.total
        if size > 0 and total + size > most and not self._is_guaranteed(reservation.client, size):
            self.refused[use] += 1
            if reservation.size + size > most:
                raise TooLarge(
                    f"The request needs more memory than the server has for it: {int(most) // 1_000_000} MB.",
                    code="too_many_bytes",
                )
            raise TooMany(
                "The requests in progress use all of the server's memory budget. Try again shortly.",
                code="too_many_bytes",
                retry_after=RETRY_SECONDS,
            )

    def _add(self, reservation: Reservation, size: int) -> None:
        reservation.size += size
        self._count(reservation, size)
        self.peak = max(self.peak, self.total)

    def _give_back(self, reservation: Reservation, size: int) -> None:
        self._count(reservation, -size)
        self._hand_out()

    def _count(self, reservation: Reservation, size: int) -> None:
        self.used[reservation.use] += size
        client = reservation.client
        self._of_client[client] = self._of_client.get(client, 0) + size
        if not self._of_client[client]:
            del self._of_client[client]

    def _hand_out(self) -> None:
        """Grant what waits, the latest uses first: they are the first to be given back."""
        for use, waiting in reversed(self._waiting.items()):
            while waiting:
                client, wishes = next(iter(waiting.items()))
                wish = wishes[0]
                if not wish.turn.done():  # otherwise it has just been cancelled
                    if not self._has_room(use, wish.size):
                        break
                    self._add(wish.reservation, wish.size)
                    wish.turn.set_result(None)
                wishes.popleft()
                waiting.move_to_end(client)
                self._tidy(waiting, client)

    @staticmethod
    def _tidy(waiting: OrderedDict[str, deque[_Wish]], client: str) -> None:
        if not waiting[client]:
            del waiting[client]


class Reservation:
    """Some bytes of a budget, which are given back by `close`. A context manager."""

    def __init__(self, budget: MemoryBudget, use: Use, client: str = "") -> None:
        """Use `MemoryBudget.reserve` or `MemoryBudget.wait` instead."""
        self.use = use
        self.client = client
        self.size = 0
        """Number of reserved bytes."""
        self._budget = budget

    def grow(self, size: int) -> None:
        """Reserve `size` bytes more. Raises as `check`."""
        self.check(size)
        self._budget._add(self, size)

    def check(self, size: int) -> None:
        """Check that there is room for `size` bytes more, without reserving them.

        Raises:
            TooMany: There is no room at present.
            TooLarge: This reservation alone would exceed the share of its use.
        """
        self._budget._check(self, size)

    def note(self, size: int) -> None:
        """Count `size` bytes more even if there is no room: for bytes that exist already and cannot be refused."""
        self._budget._add(self, size)

    def resize(self, size: int) -> None:
        """Shrink to `size` bytes, or count so many even if there is no room. See `note`."""
        self.note(max(size - self.size, 0))
        self.shrink_to(size)

    def shrink_to(self, size: int) -> None:
        """Give back all but `size` bytes. Does nothing if it has no more than that."""
        if size < self.size:
            less, self.size = self.size - size, size
            self._budget._give_back(self, less)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self.shrink_to(0)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClientMemory(NamedTuple):
    """A budget, on behalf of a client."""

    budget: MemoryBudget
    client: str

    def reserve(self, use: Use, size: int = 0) -> Reservation:
        """As `MemoryBudget.reserve`."""
        return self.budget.reserve(use, size, self.client)

    async def wait(self, use: Use, size: int) -> Reservation:
        """As `MemoryBudget.wait`."""
        return await self.budget.wait(use, size, self.client)


class _Wish(NamedTuple):
    """Bytes that somebody waits for."""

    reservation: Reservation
    size: int
    turn: asyncio.Future[None]


def default_capacity() -> int:
    """Return the capacity for this machine in bytes: a share of the memory of the machine or of the container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(MIN_CAPACITY, math.floor(SHARE_OF_MACHINE * min(memory, *map(_limit, _CGROUP_LIMITS))))


def _limit(file: Path) -> float:
    """Return the memory limit of a control group in bytes, infinite if it has none."""
    try:
        text = file.read_text().strip()
    except OSError:
        return math.inf
    return int(text) if text.isdecimal() else math.inf
