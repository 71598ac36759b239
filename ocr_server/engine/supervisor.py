"""Keeps an engine running: detects that it crashed or hangs, ends what is left of it, and starts the next one."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar

from ocr_server.engine.flight import Flight
from ocr_server.engine.liveness import Liveness
from ocr_server.engine.quarantine import Evidence, Suspects, content_key
from ocr_server.engine.restartable import Check, RestartableEngine
from ocr_server.errors import Unavailable
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta

logger = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_RETRY_AFTER = 60.0
"""Upper bound of `retry_after`, in seconds."""


@dataclass(frozen=True)
class Timing:
    """Intervals and limits, in seconds."""

    poll: float = 0.2
    """Interval at which the engine is checked."""
    backoff: float = 1.0
    """Wait before the first restart. It is doubled for each further one."""
    longest_backoff: float = 60.0
    """Upper bound of the wait before a restart."""
    healthy: float = 180.0
    """An engine that has run for this long resets the wait to `backoff`."""
    window: float = 3600.0
    """Period in which crashes are counted, and after which suspects are forgotten."""
    kill: float = 30.0
    """Limit for ending an engine that crashed. After it, the next one is started all the same."""


class Supervisor:
    """An engine that replaces the engine behind it when that crashes or hangs.

    When an engine crashes or hangs, all its pages end with `Unavailable`, so that clients try again. The pages that
    were being read become suspects: from then on they are read one at a time, while other pages are read as usual,
    until each suspect has been read to its end or there is enough evidence against it (see `Evidence`), upon which it
    is refused. A page that is tried again is a new request, so pages are recognised by their content.
    """

    def __init__(
        self,
        make: Callable[[], RestartableEngine],
        *,
        check: Check,
        stall_timeout: float,
        most_restarts: int,
        timing: Timing | None = None,
    ) -> None:
        """Args:
        make: Returns an engine that has not been started.
        check: Checks decoding options, as `Engine.check` does. It is closed with the supervisor.
        stall_timeout: The engine is taken to hang if pages wait for it and it makes no step for this many seconds; ten
            times as many while it computes (see `Liveness`).
        most_restarts: Maximum number of crashes within `timing.window`. After one more crash, the engine is not
            restarted.
        timing: Intervals and limits.
        """
        self._make = make
        self._check = check
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
        self._flights: set[Flight] = set()
        self._interrupted: list[Page] = []
        self._hung = False
        self._suspects = Suspects(self._timing.window)
        self._crashes: deque[float] = deque()
        self._backoff = self._timing.backoff
        self._loading_takes = 30.0
        self._ready_at = 0.0
        self._liveness = Liveness(stall_timeout)
        self._deltas = 0
        """Number of deltas that engines have delivered."""
        self.restarts = 0
        """Number of restarts so far."""

    # The Engine protocol

    def unavailable(self) -> str | None:
        return self._reason

    async def check(self, decoding: Decoding) -> None:
        await self._check(decoding)

    def start(self) -> None:
        if self._running is None and not self._closed:
            self._reason = "The model is being loaded."
            self._expect_in(self._loading_takes)
            self._first_load = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._first_load), name="engine supervisor")

    async def loaded(self) -> None:
        """Start, and wait until the first engine is ready.

        Raises:
            Exception: The first engine failed to load; it is not tried again.
            Unavailable: The supervisor has been closed.
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
        """Close, and kill the engine instead of asking it to end. Works during `close`, too."""
        await self._close(kill=True)

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        self._ready()
        flight = Flight(page)
        self._flights.add(flight)
        key = None
        async with AsyncExitStack() as leaving:
            leaving.callback(self._flights.discard, flight)
            if self._suspects.any(_now()):  # otherwise no page needs to be hashed
                key = await self._unless_crashed(flight, self._turn(page, leaving))
            engine = self._ready()
            flight.in_engine = True
            deltas = await leaving.enter_async_context(aclosing(engine.read(page)))
            while (delta := await self._next(flight, engine, deltas)) is not None:
                yield delta
        if key is not None:
            self._suspects.clear(key)

    # For the server

    @property
    def retry_after(self) -> float:
        """Estimated time until an engine is ready, in seconds, from 1 to 60."""
        return min(max(self._ready_at - _now(), 1.0), LONGEST_RETRY_AFTER)

    async def given_up(self) -> None:
        """Wait until the engine has crashed too often to be restarted. The process should end then."""
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
        """Wait until the page may be read, and return its key. `leaving` ends its turn."""
        key = await asyncio.to_thread(content_key, page)
        await leaving.enter_async_context(self._suspects.turn(key))
        return key

    async def _next(
        self, flight: Flight, engine: RestartableEngine, deltas: AsyncGenerator[PageDelta]
    ) -> PageDelta | None:
        if flight.ended:
            raise self._refusal()
        try:
            delta = await self._unless_crashed(flight, anext(deltas, None))
        except Exception as error:
            if not flight.ended and (isinstance(error, Unavailable) or engine.unavailable() is not None):
                self._fail("has stopped working")
                raise self._refusal() from error
            raise
        self._deltas += 1
        return delta

    async def _unless_crashed(self, flight: Flight, coming: Awaitable[T]) -> T:
        """Return the result of `coming`. Raises Unavailable if the engine crashes first, even if the next is ready."""
        try:
            return await flight.wait(coming)
        except Exception as error:
            if flight.ended:
                raise self._refusal() from error
            raise

    def _fail(self, what: str, *, hung: bool = False) -> None:
        """Mark the engine as unavailable, and end all pages. `what` completes the sentence "The engine …"."""
        if self._reason is None:
            self._hung = hung
            self._end_flights(f"The engine {what} and is being restarted; try again shortly.")
            self._expect_in(self._backoff + self._loading_takes)
            self._failed.set()
            logger.error("The engine %s while it read %d pages", what, len(self._interrupted))

    def _end_flights(self, reason: str) -> None:
        self._reason = reason
        flights, self._flights = self._flights, set()  # a page that is slow to leave does not belong to the next engine
        self._interrupted = [flight.page for flight in flights if flight.in_engine]
        for flight in flights:
            flight.end()

    # Watching

    async def _run(self, first_load: asyncio.Future[None]) -> None:
        try:
            while await self._run_engine(first_load):
                await self._after_crash()
        except _GiveUp as reason:
            self._give_up(str(reason))
        except Exception:
            logger.exception("The engine's supervisor failed")
            self._give_up("The engine cannot be restarted; see the server's log.")

    async def _run_engine(self, first_load: asyncio.Future[None]) -> bool:
        """Load an engine and watch it until it crashes. Returns False if it was the first and failed to load."""
        begun = _now()
        try:
            self._engine = self._make()
            await self._loaded(self._engine)
        except Exception as error:
            if not first_load.done():
                await self._end()
                self._reason = "The model could not be loaded; see the server's log."
                first_load.set_exception(error)
                first_load.exception()  # mark it as retrieved, in case nobody waits
                return False
            logger.error("The engine could not be loaded again", exc_info=error)
            return True
        ready = _now()
        self._loading_takes = ready - begun
        if first_load.done():
            logger.warning("The engine is ready again after %.1f s", ready - self._crashes[-1])
        else:
            first_load.set_result(None)
        self._failed.clear()
        self._reason = None
        await self._watch(self._engine)
        if _now() - ready >= self._timing.healthy:
            self._backoff = self._timing.backoff
        return True

    async def _loaded(self, engine: RestartableEngine) -> None:
        """Wait until the engine is loaded. A load that cancels itself raises RuntimeError, unlike a cancelled wait."""
        loading = asyncio.ensure_future(engine.loaded())
        try:
            await asyncio.wait({loading})
        finally:
            loading.cancel()
        if loading.cancelled():
            raise RuntimeError("loading the engine was cancelled")
        loading.result()

    async def _watch(self, engine: RestartableEngine) -> None:
        """Return when the engine has crashed or hangs."""
        self._liveness.reset(_now())
        while not self._failed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.poll):
                    await self._failed.wait()
            if engine.unavailable() is not None:
                self._fail("has stopped working")
            elif self._hangs(engine):
                self._fail("has stopped making progress", hung=True)

    def _hangs(self, engine: RestartableEngine) -> bool:
        """Whether pages have been waiting for the engine for too long, and it has made no step meanwhile.

        Pages whose client does not ask for more and pages that wait for their turn are not counted.
        """
        if not any(flight.in_engine and flight.waits for flight in self._flights):
            self._liveness.reset(_now())
            return False
        return self._liveness.hangs(
            _now(), (engine.steps, self._deltas), has_work=engine.has_work(), cpu_seconds=engine.cpu_seconds
        )

    async def _after_crash(self) -> None:
        """End the engine, record the crash, and wait before the next engine."""
        now = _now()
        self._crashes.append(now)
        while self._crashes[0] <= now - self._timing.window:
            self._crashes.popleft()
        interrupted, self._interrupted = self._interrupted, []
        evidence = await self._evidence(len(interrupted))
        await self._end()
        keys = await asyncio.to_thread(lambda: {content_key(page) for page in interrupted})
        self._suspects.record_crash(keys, _now(), evidence)
        if len(self._crashes) > self._most_restarts:
            raise _GiveUp(
                f"The engine has crashed {len(self._crashes)} times within {self._timing.window / 60:g} minutes."
            )
        self._expect_in(self._backoff + self._loading_takes)
        await asyncio.sleep(self._backoff)
        self._backoff = min(2 * self._backoff, self._timing.longest_backoff)
        self.restarts += 1

    async def _evidence(self, pages: int) -> Evidence:
        """Return how much this crash says against the pages that were being read. `pages` is their number."""
        if self._engine is None:
            return Evidence.WEAK
        by_itself = True
        try:
            async with asyncio.timeout(self._timing.kill):
                by_itself = await self._engine.failed_by_itself()
        except Exception:
            logger.exception("The cause of the crash is not known")
        if not by_itself:
            logger.error("It was killed or stopped from outside, or the machine is short of memory")
        return Evidence.STRONG if by_itself and (pages == 1 or not self._hung) else Evidence.WEAK

    async def _end(self) -> None:
        """End the engine's processes."""
        if self._engine is None:
            return
        try:
            async with asyncio.timeout(self._timing.kill):
                await self._engine.kill()
        except Exception:
            logger.exception("The engine could not be ended cleanly")
        self._engine = None

    def _give_up(self, reason: str) -> None:
        logger.critical("%s The server exits.", reason)
        self._end_flights(f"{reason} It is not restarted again.")
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
        await self._check.close()
        if self._engine is not None:
            await (self._engine.kill() if kill else self._engine.close())

    def _expect_in(self, seconds: float) -> None:
        self._ready_at = _now() + seconds


class _GiveUp(Exception):
    """The engine has crashed too often. The message says how often."""


def _now() -> float:
    """The time in seconds, on the loop's clock."""
    return asyncio.get_running_loop().time()
