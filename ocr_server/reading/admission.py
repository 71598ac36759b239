"""Who is read when: a bound on the work that is accepted, and a fair share of the engine for everyone.

Pages of all requests share `slots`: that many are loaded, prepared and read at a time, which bounds the pictures in
memory. A slot that becomes free goes to the next client in turn, and of a client's requests to the next in turn: a
picture does not wait for the thousand pages that came before it.

Requests in the background (those of batches) have slots only while nobody else waits for one, and never more than
`background_slots`. They are not refused, nor do they count for what others are refused: whoever makes them bounds them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from ocr_server.errors import TooMany
from ocr_server.observability.logs import ANONYMOUS

RATE_PAGES = 32
"""Over so many of the last pages the speed is measured that `Retry-After` follows from."""
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 120.0
"""`Retry-After`; the OpenAI SDK obeys up to 120 s."""


class Admission:
    """One for the server."""

    def __init__(
        self,
        *,
        slots: int,
        most_waiting: int,
        most_of_client: int = 0,
        background_slots: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        slots: pages at a time.
        most_waiting: pages waiting for one, from which on new requests are refused.
        most_of_client: pages, waiting or being read, from which on new requests of the same client are refused; 0
            for no such bound.
        background_slots: pages in the background at a time.
        """
        self._slots = slots
        self._background_slots = background_slots
        self._most_waiting = most_waiting
        self._most_of_client = most_of_client
        self._clock = clock
        self._line, self._background_line = _Line(), _Line()
        self._of_client: dict[str, int] = {}
        self._ended: deque[float] = deque(maxlen=RATE_PAGES)
        self.pages_in_flight = 0
        """Pages that have a slot."""
        self.pages_waiting = 0
        """Pages of accepted requests that have not had one yet, without those in the background."""
        self.background_in_flight = 0
        """Of the pages that have a slot, those in the background."""

    def enter(self, client: str = ANONYMOUS, *, in_background: bool = False) -> Ticket:
        """A place for a request; close it when the request has ended.

        Raises:
            TooMany: there is too much waiting, or too much of this client's.
        """
        if in_background:
            return Ticket(self, client, in_background=True)
        if self.pages_waiting >= self._most_waiting:
            raise TooMany(
                f"{self.pages_waiting} pages are waiting, more than this server queues.",
                retry_after=self._retry_after(self.pages_waiting - self._most_waiting + 1),
            )
        own = self._of_client.get(client, 0)
        if self._most_of_client and own >= self._most_of_client:
            raise TooMany(
                f"{own} pages of yours are being read or waiting; at most {self._most_of_client} may be.",
                retry_after=self._retry_after(own - self._most_of_client + 1),
            )
        return Ticket(self, client)

    def expect(self, ticket: Ticket, pages: int) -> None:
        """`pages` more (or fewer) wait."""
        if not ticket.in_background:
            self.pages_waiting += pages
            self._count(ticket.client, pages)

    def _count(self, client: str, pages: int) -> None:
        self._of_client[client] = self._of_client.get(client, 0) + pages
        if not self._of_client[client]:
            del self._of_client[client]

    async def acquire(self, ticket: Ticket) -> None:
        """Wait for a slot; it counts as the page's own from then on."""
        line = self._background_line if ticket.in_background else self._line
        if not line and self._has_slot(ticket.in_background):
            self._take(ticket)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.join(ticket, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if not ticket.in_background:
                    self.pages_waiting += 1  # it was just given the slot; the ticket still counts the page as waiting
                self._give_back(ticket)
            else:
                line.leave(ticket, turn)
            raise

    def release(self, ticket: Ticket) -> None:
        """A page of `ticket` is done with."""
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
        """Free slots go to those who wait; whoever waits in the foreground goes first."""
        for line, in_background in ((self._line, False), (self._background_line, True)):
            while line and self._has_slot(in_background):
                ticket, turn = line.next()
                if not turn.done():  # else whoever waited has just gone
                    self._take(ticket)
                    turn.set_result(None)

    def _retry_after(self, pages: int) -> float:
        """Seconds in which so many pages will be done, by the speed of the last ones."""
        if len(self._ended) < 2:
            return LEAST_RETRY_S
        seconds_a_page = (self._clock() - self._ended[0]) / len(self._ended)
        return min(max(pages * seconds_a_page, LEAST_RETRY_S), MOST_RETRY_S)


class _Line:
    """Who waits, in turn: client after client, and of a client request after request."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[Ticket, deque[asyncio.Future[None]]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def join(self, ticket: Ticket, turn: asyncio.Future[None]) -> None:
        self._clients.setdefault(ticket.client, OrderedDict()).setdefault(ticket, deque()).append(turn)

    def next(self) -> tuple[Ticket, asyncio.Future[None]]:
        """The next turn; its client and its ticket go to the end of their lines."""
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
    """One request's place."""

    def __init__(self, admission: Admission, client: str, *, in_background: bool = False) -> None:
        self.client = client
        self.in_background = in_background
        self._admission = admission
        self._waiting = 0

    def expect(self, pages: int) -> None:
        """The request has so many pages."""
        self._waiting += pages
        self._admission.expect(self, pages)

    async def acquire(self) -> None:
        """Wait until one of its pages may be loaded and read."""
        await self._admission.acquire(self)
        self._waiting -= 1

    def release(self) -> None:
        """A page that had been given its turn is done with."""
        self._admission.release(self)

    def close(self) -> None:
        """Pages that never had their turn wait no more. As often as you like."""
        self._admission.expect(self, -self._waiting)
        self._waiting = 0
