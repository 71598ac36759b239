"""Watches the event loop: measures for how long it runs no tasks, and logs what it was doing if this is too long."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType

from ocr_server.observability import metrics

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""Time in seconds between two measurements."""
WARN_AFTER_S = 1.0
"""Stall in seconds after which the stack of the event loop's thread is logged."""
WINDOW_S = 60.0
"""Time in seconds over which `longest` looks back."""
_DEEPEST = 15
"""Number of innermost stack frames that are logged."""


class LoopWatchdog:
    """Watches the running event loop while its context is open. Exports `ocr_event_loop_…` metrics.

    A task sleeps for a short time again and again; a stall is the time by which it wakes up too late. A thread notices
    when the task does not wake up, and logs where the loop's thread is, once for each stall.
    """

    def __init__(
        self,
        *,
        warn_after_s: float = WARN_AFTER_S,
        window_s: float = WINDOW_S,
        expected: Callable[[], object] = bool,
    ) -> None:
        """Args:
        warn_after_s: Stall after which the stack is logged, in seconds.
        window_s: Time over which `longest` looks back, in seconds.
        expected: Returns a true value while stalls are not worth a warning, as when a model is loaded. It is called
            in another thread.
        """
        self._expected = expected
        self._warn_after_s = warn_after_s
        self._window_s = window_s
        self._due = 0.0
        self._stalls: deque[tuple[float, float]] = deque()  # time and length, the longest first, without shorter ones
        self._stopped = threading.Event()

    async def __aenter__(self) -> LoopWatchdog:
        self._due = time.monotonic() + TICK_S
        self._task = asyncio.create_task(self._measure())
        self._thread = threading.Thread(
            target=self._warn, args=(threading.get_ident(),), name="event loop watchdog", daemon=True
        )
        self._thread.start()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._task.cancel()
        self._thread.join()

    @property
    def longest(self) -> float:
        """Longest stall that ended within the window, in seconds."""
        self._forget()
        return self._stalls[0][1] if self._stalls else 0.0

    async def _measure(self) -> None:
        while True:
            self._due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            stall = max(0.0, now - self._due)
            while self._stalls and self._stalls[-1][1] <= stall:
                self._stalls.pop()
            self._stalls.append((now, stall))
            metrics.EVENT_LOOP_STALL_SECONDS.observe(stall)
            metrics.EVENT_LOOP_LONGEST_STALL.set(self.longest)

    def _forget(self) -> None:
        start = time.monotonic() - self._window_s
        while self._stalls and self._stalls[0][0] < start:
            self._stalls.popleft()

    def _warn(self, loop_thread: int) -> None:
        reported = 0.0
        while not self._stopped.wait(self._warn_after_s / 4):
            due = self._due
            stall = time.monotonic() - due
            if stall < self._warn_after_s or due == reported or self._expected():
                continue
            reported = due
            frame = sys._current_frames().get(loop_thread)
            stack = traceback.extract_stack(frame)[-_DEEPEST:]
            waits = bool(stack) and stack[-1].name == "select"
            logger.warning(
                "The event loop has been stalled for %.1f s%s:\n%s",
                stall,
                " while another thread or the machine kept it from running" if waits else "",
                "".join(traceback.format_list(stack)).rstrip(),
            )
