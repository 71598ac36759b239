"""Admission control: limits the work that is accepted, and shares the engine fairly between clients.

The pages of all requests share a number of slots: that many pages are loaded, prepared and read at a time, which limits
the pictures in memory. A free slot goes to the next client in turn, and to the next request of that client in turn, so
that a single picture does not wait for the thousand pages of a document that came before it. The length of the queue is
limited, but a client with few pages in it is admitted even if others have filled it.

Background requests (those of batches) get slots only while no other request waits for one, and at most
`background_slots` of them. They are never refused and do not count towards the limits of other requests; the caller
limits them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from ocr_server.errors import TooMany
from ocr_server.observability.logs import ANONYMOUS

RATE_PAGES = 32
"""Number of the most recent pages from which the speed is measured, to estimate `Retry-After`."""
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 120.0
"""Bounds of `Retry-After`, in seconds. The OpenAI SDK respects values up to 120 s."""


class Admission:
    """The queue of a server: gives slots to the pages of all requests."""

    def __init__(
        self,
        *,
        slots: int,
        most_waiting: int,
        guaranteed: int = 0,
        most_of_client: int = 0,
        background_slots: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        slots: Number of pages that are in progress at a time.
        most_waiting: Number of pages that may wait. A longer request is admitted when no other page is waiting.
        guaranteed: Number of pages of one client, waiting or in progress, that are admitted in any case.
        most_of_client: Number of pages that one client may have, waiting or in progress; 0 for no limit. A longer
            request is admitted when the client has no other.
        background_slots: Number of background pages that are in progress at a time.
        clock: Returns the time in seconds.
        """
        self._slots = slots
        self._background_slots = background_slots
        self._most_waiting = most_waiting
        self._guaranteed = guaranteed
        self._most_of_client = most_of_client
        self._clock = clock
        self._queue, self._background_queue = _Queue(), _Queue()
        self._of_client: dict[str, int] = {}
        self._ended: deque[float] = deque(maxlen=RATE_PAGES)
        self.pages_in_flight = 0
        """Pages that have a slot."""
        self.pages_waiting = 0
        """Pages of accepted requests that have not had a slot yet, without background pages."""
        self.background_in_flight = 0
        """Background pages that have a slot."""

    def enter(self, client: str = ANONYMOUS, *, pages: int = 1, in_background: bool = False) -> Ticket:
        """Return a ticket for a request. Close it when the request has ended.

        Args:
            client: Name of the client. Clients share the slots fairly.
            pages: Number of pages that the request has at least. They count as waiting from now on.
            in_background: Whether all other requests go first.

        Raises:
            TooMany: Too many pages are waiting, or too many pages of this client are in progress.
        """
        ticket = Ticket(self, client, in_background=in_background)
        ticket.expect(pages)
        return ticket

    def check(self, ticket: Ticket, pages: int) -> None:
        """Check whether a ticket that counts no pages may count `pages`. Raises as `enter`."""
        own = self._of_client.get(ticket.client, 0)
        if self._most_of_client and own and own + pages > self._most_of_client:
            raise TooMany(
                f"You have {own} pages in progress; the limit is {self._most_of_client}. Try again later.",
                retry_after=self._retry_after(own + pages - self._most_of_client),
            )
        if own + pages <= self._guaranteed or not self.pages_waiting:
            return
        if self.pages_waiting + pages > self._most_waiting:
            raise TooMany(
                f"The server's queue is full: {self.pages_waiting} pages are waiting; the limit is "
                f"{self._most_waiting}. Try again later.",
                retry_after=self._retry_after(self.pages_waiting + pages - self._most_waiting),
            )

    def expect(self, ticket: Ticket, pages: int) -> None:
        """Count `pages` more pages of the ticket as waiting (fewer if negative)."""
        if not ticket.in_background:
            self.pages_waiting += pages
            self._count(ticket.client, pages)

    def _count(self, client: str, pages: int) -> None:
        self._of_client[client] = self._of_client.get(client, 0) + pages
        if not self._of_client[client]:
            del self._of_client[client]

    async def acquire(self, ticket: Ticket) -> None:
        """Wait for a slot for a page of the ticket."""
        queue = self._background_queue if ticket.in_background else self._queue
        if not queue and self._has_slot(ticket.in_background):
            self._take(ticket)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.join(ticket, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if not ticket.in_background:
                    self.pages_waiting += 1  # it was given a slot just now, but the ticket counts it as waiting
                self._give_back(ticket)
            else:
                queue.leave(ticket, turn)
            raise

    def release(self, ticket: Ticket) -> None:
        """Give back the slot of a page of the ticket."""
        self._ended.append(self._clock())
        if not ticket.in_background:
            self._count(ticket.client, -1)
        self._give_back(ticket)

    def _has_slot(self, in_background: bool) -> bool:
        if self.pages_in_flight >= self._slots:
            return False
        return not in_background or self.background_in_flight < self._background_slots

    def _take(self, ticket: Ticket) -> None:
        self.pages_in_flight += 1
        if ticket.in_background:
            self.background_in_flight += 1
        else:
            self.pages_waiting -= 1

    def _give_back(self, ticket: Ticket) -> None:
        self.pages_in_flight -= 1
        self.background_in_flight -= ticket.in_background
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free slots to waiting pages, background pages last."""
        for queue, in_background in ((self._queue, False), (self._background_queue, True)):
            while queue and self._has_slot(in_background):
                ticket, turn = queue.next()
                if not turn.done():  # otherwise the page has just been cancelled
                    self._take(ticket)
                    turn.set_result(None)

    def _retry_after(self, pages: int) -> float:
        """Estimate the time in which so many pages will be done, in seconds, from the speed of recent pages."""
        if len(self._ended) < 2:
            return LEAST_RETRY_S
        seconds_a_page = (self._clock() - self._ended[0]) / len(self._ended)
        return min(max(pages * seconds_a_page, LEAST_RETRY_S), MOST_RETRY_S)


class _Queue:
    """Waiting pages. Clients take turns, and so do the requests of a client."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[Ticket, deque[asyncio.Future[None]]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def join(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        self._clients.setdefault(ticket.client, OrderedDict()).setdefault(ticket, deque()).append(turn)

    def next(self) -> tuple[Ticket, asyncio.Future[None]]:
        """Remove and return the next page's turn. Its client and its ticket go to the end of the queue."""
        client, tickets = next(iter(self._clients.items()))
        ticket, turns = next(iter(tickets.items()))
        turn = turns.popleft()
        tickets.move_to_end(ticket)
        self._clients.move_to_end(client)
        self._tidy(ticket)
        return ticket, turn

    def leave(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        self._clients[ticket.client][ticket].remove(turn)
        self._tidy(ticket)

    def _tidy(self, ticket: Ticket) -> None:
        tickets = self._clients[ticket.client]
        if not tickets[ticket]:
            del tickets[ticket]
        if not tickets:
            del self._clients[ticket.client]


class Ticket:
    """A request's place in the queue."""

    def __init__(self, admission: Admission, client: str, *, in_background: bool = False) -> None:
        self.client = client
        self.in_background = in_background
        self._admission = admission
        self._waiting = 0

    def expect(self, pages: int) -> None:
        """Set the number of the request's pages, none of which has had a slot. They count as waiting from now on.

        Raises:
            TooMany: As in `Admission.enter`. The ticket counts no pages any more.
        """
        self.close()
        if not self.in_background:
            self._admission.check(self, pages)
        self._waiting = pages
        self._admission.expect(self, pages)

    async def acquire(self) -> None:
        """Wait until one of the request's pages may be loaded and read."""
        await self._admission.acquire(self)
        self._waiting -= 1

    def release(self) -> None:
        """Give back the slot of a page, once for each `acquire`."""
        self._admission.release(self)

    def close(self) -> None:
        """Stop counting the pages that have had no slot as waiting. Idempotent."""
        self._admission.expect(self, -self._waiting)
        self._waiting = 0
