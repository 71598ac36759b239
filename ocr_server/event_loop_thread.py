"""An event loop in a thread of its own, for programs that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class EventLoopThread:
    """Runs an event loop in a daemon thread until it is closed."""

    def __init__(self, name: str) -> None:
        """Args:
        name: Name of the thread.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        """Run `work` in the loop and return its result. Call this from any thread other than the loop's own."""
        waiting: Future[T] = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        return waiting.result()

    def close(self) -> None:
        """Stop the loop and wait until its thread has ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work
