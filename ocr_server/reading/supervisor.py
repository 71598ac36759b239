"""Keeps one engine running: sees that it died or hangs, ends what is left of it, and builds the next."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ocr_server.errors import InvalidRequest, Unavailable
from ocr_server.reading.engine import Engine
from ocr_server.reading.page import Page, PageDelta

logger = logging.getLogger(__name__)

MOST_SUSPECTS = 10_000
DEATHS_OF_POISON = 2
LONGEST_RETRY_AFTER = 60.0
"""Seconds."""


class Mortal(Engine, Protocol):
    """An engine as the supervisor needs it. Once loaded, it is dead when it is unavailable."""

    async def loaded(self) -> None:
        """Start, and wait until it is ready. Raises what kept it from loading."""

    async def kill(self) -> None:
        """Leave no process behind, whatever state they are in."""


@dataclass(frozen=True)
class Timing:
    """All in seconds."""

    poll: float = 0.2
    """Between two looks at the engine."""
    backoff: float = 1.0
    """Before the first new engine; doubled each time."""
    longest_backoff: float = 60.0
    healthy: float = 180.0
    """An engine that lived so long makes the backoff begin anew."""
    window: float = 3600.0
    """In which deaths are counted, and after which suspects are forgotten."""
    kill: float = 30.0
    """Ending a dead engine may take so long; then the next one is tried all the same."""


class Supervisor:
    """An engine that outlives the engines it is made of.

    When one dies or hangs, all its pages end with `Unavailable`, which clients try again. A page that was being
    read at two deaths is taken for their cause and refused from then on. Pages that come again are new requests,
    so they are known by their content.
    """

    def __init__(
        self, make: Callable[[], Mortal], *, stall_timeout: float, most_restarts: int, timing: Timing | None = None
    ) -> None:
        """Args:
        make: builds an engine that has not been started.
        stall_timeout: seconds in which, while pages wait for text, none gets any, and the engine hangs.
        most_restarts: deaths within `timing.window` after which there is a new engine; one more is the end.
        """
        self._make = make
        self._stall_timeout = stall_timeout
        self._most_restarts = most_restarts
        self._timing = timing or Timing()
        self._engine: Mortal | None = None
        self._reason: str | None = "The engine has not been started."
        self._running: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._first_load: asyncio.Future[None] | None = None
        self._failed = asyncio.Event()
        self._gave_up = asyncio.Event()
        self._flights: set[_Flight] = set()
        self._victims: list[Page] = []
        self._suspects = Suspects(self._timing.window)
        self._deaths: deque[float] = deque()
        self._backoff = self._timing.backoff
        self._loading_takes = 30.0
        self._ready_at = 0.0
        self._last_sign = 0.0
        self.restarts = 0
        """New engines begun so far."""

    # What an engine does

    def unavailable(self) -> str | None:
        return self._reason

    def start(self) -> None:
        if self._running is None:
            self._reason = "The model is being loaded."
            self._expect_in(self._loading_takes)
            self._first_load = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._first_load), name="engine supervisor")

    async def loaded(self) -> None:
        """Start, and wait until the first engine is ready.

        Raises:
            Exception: what kept it from loading; it is not tried again.
        """
        self.start()
        assert self._first_load is not None
        await asyncio.shield(self._first_load)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(kill=False))
        await asyncio.shield(self._closing)

    async def kill(self) -> None:
        """Close without letting the engine end by itself, also when `close` is under way."""
        await self._close(kill=True)

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        engine = self._ready()
        key = None
        if self._suspects.any(_now()):  # else no page need be hashed
            key = await asyncio.to_thread(content_key, page)
            if self._suspects.deaths(key) >= DEATHS_OF_POISON:
                raise InvalidRequest(
                    f"The engine stopped working {DEATHS_OF_POISON} times while it read this page, so it is not read "
                    "again. Another resolution mode or prompt may do.",
                    code="poison_page",
                )
            engine = self._ready()
        flight = _Flight(page)
        self._flights.add(flight)
        deltas = engine.read(page)
        try:
            while (delta := await self._next(flight, engine, deltas)) is not None:
                yield delta
        finally:
            self._flights.discard(flight)
            await deltas.aclose()
        if key is not None:
            self._suspects.acquit(key)

    # What the server asks beside

    @property
    def retry_after(self) -> float:
        """Seconds after which there may be an engine again: a guess, between 1 and 60."""
        return min(max(self._ready_at - _now(), 1.0), LONGEST_RETRY_AFTER)

    async def given_up(self) -> None:
        """Wait until too many engines have died. Then none is built any more, and the process should end."""
        await self._gave_up.wait()

    # Reading

    def _ready(self) -> Mortal:
        if self._reason is not None:
            raise self._refusal()
        assert self._engine is not None
        return self._engine

    def _refusal(self) -> Unavailable:
        return Unavailable(self._reason or "The engine was restarted; try again.", retry_after=self.retry_after)

    async def _next(self, flight: _Flight, engine: Mortal, deltas: AsyncGenerator[PageDelta]) -> PageDelta | None:
        if flight.ended:
            raise self._refusal()
        try:
            delta = await flight.next(deltas)
        except Exception as error:
            if flight.ended or isinstance(error, Unavailable) or engine.unavailable() is not None:
                self._fail("has stopped working")
                raise self._refusal() from error
            raise
        self._last_sign = _now()
        return delta

    def _fail(self, what: str) -> None:
        """The engine is no good any more: say so from now on, and end everything that waits for it."""
        if self._reason is None:
            self._end_flights(f"The engine {what} and is being restarted; try again shortly.")
            self._expect_in(self._backoff + self._loading_takes)
            self._failed.set()
            logger.error("the engine %s; %d pages were being read", what, len(self._victims))

    def _end_flights(self, reason: str) -> None:
        self._reason = reason
        self._victims = [flight.page for flight in self._flights]
        for flight in self._flights:
            flight.end()

    # Watching

    async def _run(self, first_load: asyncio.Future[None]) -> None:
        try:
            while await self._one_life(first_load):
                await self._after_death()
        except _GiveUp as reason:
            self._give_up(str(reason))
        except Exception:
            logger.exception("the engine's supervisor failed")
            self._give_up("The engine can't be restarted; see the server's log.")

    async def _one_life(self, first_load: asyncio.Future[None]) -> bool:
        """Load an engine and watch it until it dies. False if it was the first and could not be loaded."""
        begun = _now()
        try:
            self._engine = self._make()
            await self._engine.loaded()
        except Exception as error:
            if not first_load.done():
                await self._end()
                self._reason = "The model could not be loaded; see the server's log."
                first_load.set_exception(error)
                first_load.exception()  # whoever waits has it; if nobody does, that is no fault
                return False
            logger.error("the engine could not be loaded again", exc_info=error)
            return True
        ready = _now()
        self._loading_takes = ready - begun
        if first_load.done():
            logger.warning("the engine is back after %.1f s", ready - self._deaths[-1])
        else:
            first_load.set_result(None)
        self._failed.clear()
        self._reason = None
        await self._watch(self._engine)
        if _now() - ready >= self._timing.healthy:
            self._backoff = self._timing.backoff
        return True

    async def _watch(self, engine: Mortal) -> None:
        """Return when it has died or hangs."""
        while not self._failed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.poll):
                    await self._failed.wait()
            if engine.unavailable() is not None:
                self._fail("has stopped working")
            elif self._stalled():
                self._fail(f"has given no sign of life for {self._stall_timeout:g} s")

    def _stalled(self) -> bool:
        """Whether a page has been waiting for its next piece for too long, and no other has got one meanwhile.

        A page whose reader does not ask for more proves nothing, so it does not count.
        """
        latest = _now() - self._stall_timeout
        return self._last_sign <= latest and any(
            flight.limit is not None and flight.since <= latest for flight in self._flights
        )

    async def _after_death(self) -> None:
        """Clear up and wait, so that the next engine can be built."""
        now = _now()
        self._deaths.append(now)
        while self._deaths[0] <= now - self._timing.window:
            self._deaths.popleft()
        await self._end()
        victims, self._victims = self._victims, []
        keys = await asyncio.to_thread(lambda: {content_key(page) for page in victims})
        self._suspects.accuse(keys, _now())
        if len(self._deaths) > self._most_restarts:
            raise _GiveUp(f"The engine has stopped working {len(self._deaths)} times within an hour.")
        self._expect_in(self._backoff + self._loading_takes)
        await asyncio.sleep(self._backoff)
        self._backoff = min(2 * self._backoff, self._timing.longest_backoff)
        self.restarts += 1

    async def _end(self) -> None:
        """End what is left of the engine."""
        if self._engine is None:
            return
        try:
            async with asyncio.timeout(self._timing.kill):
                await self._engine.kill()
        except Exception:
            logger.exception("the engine could not be ended cleanly")
        self._engine = None

    def _give_up(self, reason: str) -> None:
        logger.critical("%s The server ends.", reason)
        self._end_flights(f"{reason} It is not restarted any more.")
        self._expect_in(LONGEST_RETRY_AFTER)
        self._gave_up.set()

    async def _close(self, *, kill: bool) -> None:
        self._end_flights("The server is shutting down.")
        self._expect_in(self._loading_takes)
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        if self._first_load is not None:
            self._first_load.cancel()
        if self._engine is not None:
            await (self._engine.kill() if kill else self._engine.close())

    def _expect_in(self, seconds: float) -> None:
        self._ready_at = _now() + seconds


class _GiveUp(Exception):
    """Too many engines have died; the message says how many."""


class _Flight:
    """A page that is being read."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.limit: asyncio.Timeout | None = None
        """While the next piece is waited for: what can end the waiting."""
        self.since = 0.0
        """When the waiting began."""
        self.ended = False

    async def next(self, deltas: AsyncGenerator[PageDelta]) -> PageDelta | None:
        """The next piece; None after the last. Raises TimeoutError when `end` comes first."""
        try:
            async with asyncio.timeout(None) as self.limit:
                self.since = _now()
                return await anext(deltas, None)
        finally:
            self.limit = None

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if self.limit is not None:
                self.limit.reschedule(_now())


class _Suspicion(NamedTuple):
    deaths: int
    last: float


class Suspects:
    """Pages that were being read when an engine died: how many, for each, by content."""

    def __init__(self, seconds: float, most: int = MOST_SUSPECTS) -> None:
        """Args:
        seconds: after which a page is forgotten.
        most: pages remembered; beyond, those with the oldest deaths are forgotten first.
        """
        self._seconds = seconds
        self._most = most
        self._known: OrderedDict[bytes, _Suspicion] = OrderedDict()

    def any(self, now: float) -> bool:
        while self._known and next(iter(self._known.values())).last <= now - self._seconds:
            self._known.popitem(last=False)
        return bool(self._known)

    def accuse(self, keys: set[bytes], now: float) -> None:
        """These were being read at a death."""
        for key in keys:
            self._known[key] = _Suspicion(self.deaths(key) + 1, now)
            self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def acquit(self, key: bytes) -> None:
        """This one has been read to its end."""
        self._known.pop(key, None)

    def deaths(self, key: bytes) -> int:
        return self._known[key].deaths if key in self._known else 0


def content_key(page: Page) -> bytes:
    """The same for pages that ask the engine the same: about 10 ms for a page of 10 MB."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (page.image.global_view, page.image.tiles):
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy())
    digest.update(repr((page.image.grid, page.prompt, page.params)).encode())
    return digest.digest()


def _now() -> float:
    """Seconds, on the loop's clock."""
    return asyncio.get_running_loop().time()
