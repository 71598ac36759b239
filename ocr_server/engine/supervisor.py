"""Keeps one engine running: sees that it died or hangs, ends what is left of it, and builds the next."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ocr_server.engine.quarantine import Suspects, content_key
from ocr_server.errors import Unavailable
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.engine import Engine
from ocr_server.reading.page import Page, PageDelta

logger = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_RETRY_AFTER = 60.0
"""Seconds."""


class RestartableEngine(Engine, Protocol):
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

    When one dies or hangs, all its pages end with `Unavailable`, which clients try again. Those that were being read
    are suspects: they are read one at a time from then on, while other pages go on, until each has been read to its
    end or the engine has died of it again, after which it is refused. Pages that come again are new requests, so they
    are known by their content.
    """

    def __init__(
        self,
        make: Callable[[], RestartableEngine],
        *,
        check: Callable[[Decoding], object],
        stall_timeout: float,
        most_restarts: int,
        timing: Timing | None = None,
    ) -> None:
        """Args:
        make: Builds an engine that has not been started.
        check: Raises DecodingError if an option is not valid, as `Engine.check` does.
        stall_timeout: seconds in which, while pages wait for text, none gets any, and the engine hangs.
        most_restarts: deaths within `timing.window` after which there is a new engine; one more is the end.
        """
        self._make = make
        self._check = check
        self._stall_timeout = stall_timeout
        self._most_restarts = most_restarts
        self._timing = timing or Timing()
        self._engine: RestartableEngine | None = None
        self._reason: str | None = "The engine has not been started."
        self._running: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
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

    def check(self, decoding: Decoding) -> None:
        self._check(decoding)

    def start(self) -> None:
        if self._running is None and not self._closed:
            self._reason = "The model is being loaded."
            self._expect_in(self._loading_takes)
            self._first_load = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._first_load), name="engine supervisor")

    async def loaded(self) -> None:
        """Start, and wait until the first engine is ready.

        Raises:
            Exception: what kept it from loading; it is not tried again.
            Unavailable: it has been closed.
        """
        self.start()
        if self._first_load is None:
            raise self._refusal()
        await asyncio.shield(self._first_load)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(kill=False))
        await asyncio.shield(self._closing)

    async def kill(self) -> None:
        """Close without letting the engine end by itself, also when `close` is under way."""
        await self._close(kill=True)

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        self._ready()
        flight = _Flight(page)
        self._flights.add(flight)
        key = None
        async with AsyncExitStack() as leaving:
            leaving.callback(self._flights.discard, flight)
            if self._suspects.any(_now()):  # else no page need be hashed
                key = await self._unless_ended(flight, self._turn(page, leaving))
            engine = self._ready()
            flight.in_engine = True
            deltas = await leaving.enter_async_context(aclosing(engine.read(page)))
            while (delta := await self._next(flight, engine, deltas)) is not None:
                yield delta
        if key is not None:
            self._suspects.clear(key)

    # What the server asks beside

    @property
    def retry_after(self) -> float:
        """Seconds after which there may be an engine again: a guess, between 1 and 60."""
        return min(max(self._ready_at - _now(), 1.0), LONGEST_RETRY_AFTER)

    async def given_up(self) -> None:
        """Wait until too many engines have died. Then none is built any more, and the process should end."""
        await self._gave_up.wait()

    # Reading

    def _ready(self) -> RestartableEngine:
        if self._reason is not None:
            raise self._refusal()
        assert self._engine is not None
        return self._engine

    def _refusal(self) -> Unavailable:
        return Unavailable(self._reason or "The engine was restarted; try again.", retry_after=self.retry_after)

    async def _turn(self, page: Page, leaving: AsyncExitStack) -> bytes:
        """Wait until the page may be read; `leaving` lets the next one have its turn. Returns the page's key."""
        key = await asyncio.to_thread(content_key, page)
        await leaving.enter_async_context(self._suspects.turn(key))
        return key

    async def _next(
        self, flight: _Flight, engine: RestartableEngine, deltas: AsyncGenerator[PageDelta]
    ) -> PageDelta | None:
        if flight.ended:
            raise self._refusal()
        try:
            delta = await self._unless_ended(flight, anext(deltas, None))
        except Exception as error:
            if not flight.ended and (isinstance(error, Unavailable) or engine.unavailable() is not None):
                self._fail("has stopped working")
                raise self._refusal() from error
            raise
        self._last_sign = _now()
        return delta

    async def _unless_ended(self, flight: _Flight, coming: Awaitable[T]) -> T:
        """What comes. Raises Unavailable if the engine's end comes first, even if the next one is there already."""
        try:
            return await flight.wait(coming)
        except Exception as error:
            if flight.ended:
                raise self._refusal() from error
            raise

    def _fail(self, what: str) -> None:
        """The engine is no good any more: say so from now on, and end everything that waits for it."""
        if self._reason is None:
            self._end_flights(f"The engine {what} and is being restarted; try again shortly.")
            self._expect_in(self._backoff + self._loading_takes)
            self._failed.set()
            logger.error("the engine %s; %d pages were being read", what, len(self._victims))

    def _end_flights(self, reason: str) -> None:
        self._reason = reason
        flights, self._flights = self._flights, set()  # what is slow to leave has nothing to do with the next engine
        self._victims = [flight.page for flight in flights if flight.in_engine]
        for flight in flights:
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
            await self._loaded(self._engine)
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

    async def _loaded(self, engine: RestartableEngine) -> None:
        """Raises what kept it from loading, also if its loading was cancelled and not this task."""
        loading = asyncio.ensure_future(engine.loaded())
        try:
            await asyncio.wait({loading})
        finally:
            loading.cancel()
        if loading.cancelled():
            raise RuntimeError("the engine broke off its loading")
        loading.result()

    async def _watch(self, engine: RestartableEngine) -> None:
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

        A page whose reader does not ask for more proves nothing, so it does not count; nor does one that waits for
        its turn.
        """
        latest = _now() - self._stall_timeout
        return self._last_sign <= latest and any(
            flight.in_engine and flight.limit is not None and flight.since <= latest for flight in self._flights
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
        self._suspects.record_crash(keys, _now())
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
        self._closed = True
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
    """A page that is being read, or that waits for its turn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.in_engine = False
        self.limit: asyncio.Timeout | None = None
        """While something is waited for: what can end the waiting."""
        self.since = 0.0
        """When the waiting began."""
        self.ended = False

    async def wait(self, coming: Awaitable[T]) -> T:
        """What comes. Raises TimeoutError when `end` comes first."""
        try:
            async with asyncio.timeout(None) as self.limit:
                self.since = _now()
                return await coming
        finally:
            self.limit = None

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if self.limit is not None:
                self.limit.reschedule(_now())


def _now() -> float:
    """Seconds, on the loop's clock."""
    return asyncio.get_running_loop().time()
