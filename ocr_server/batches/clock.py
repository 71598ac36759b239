"""The time by which files and batches expire. It does not jump when the system's clock does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select

from ocr_server.batches.database import Database, clock

logger = logging.getLogger(__name__)

CATCH_UP = 24
"""How many times as fast as real time this clock runs while it is behind the system's clock."""
NOTEWORTHY_SECONDS = 3600.0
"""Difference to the system's clock from which on a warning is logged."""


class SteadyClock:
    """Follows the system's clock, but does not jump forward with it: it catches up 24 times as fast as real time.

    It starts with the time at which a server last ran, which is kept in the database. After a server was off for a
    month, this clock is right again after 30 hours. If the system's clock is wrong, nothing is deleted at once, and
    there is time to set it right. It follows jumps backwards immediately.
    """

    def __init__(
        self,
        database: Database,
        *,
        system: Callable[[], float] = lambda: time.time(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        database: Keeps the time at which a server last ran.
        system: Returns the time of the system's clock, Unix time in seconds.
        monotonic: Returns a time in seconds that never jumps.
        """
        self._database = database
        self._system = system
        self._monotonic = monotonic
        self._now, self._looked = system(), monotonic()
        self._is_behind = False

    def now(self) -> float:
        """Return the time, Unix time in seconds."""
        system, looked = self._system(), self._monotonic()
        self._now = min(system, self._now + CATCH_UP * (looked - self._looked))
        self._looked = looked
        behind = system - self._now
        if behind > NOTEWORTHY_SECONDS and not self._is_behind:
            logger.warning(
                "the system's clock is %.1f h ahead of the time at which files and batches were last looked after; "
                "until that time has caught up in %.1f h, they expire late. Check the clock if this server was not off",
                behind / 3600,
                behind / 3600 / (CATCH_UP - 1),
            )
        self._is_behind = behind > (NOTEWORTHY_SECONDS if not self._is_behind else 0)
        return self._now

    async def load(self) -> None:
        """Continue at the time at which a server last ran. Raises Unavailable."""
        seen = await self._database.run(lambda connection: connection.execute(select(clock.c.seen)).scalar())
        self._looked = self._monotonic()
        self._now = self._system() if seen is None else min(seen, self._system())

    async def save(self) -> None:
        """Keep the present time in the database. Raises Unavailable."""
        now = self.now()

        def save(connection: Connection) -> None:
            connection.execute(delete(clock))
            connection.execute(insert(clock).values(id=1, seen=now))

        await self._database.run(save)
