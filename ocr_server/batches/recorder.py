"""Answers are committed as they come, those that come at one time together: each commit waits for the disk."""

from __future__ import annotations

import asyncio

from ocr_server.batches.leases import Answer, Leases

MOST_AT_ONCE = 64


class Recorder:
    """One for a batch."""

    def __init__(self, leases: Leases, batch_id: str) -> None:
        self._leases = leases
        self._batch_id = batch_id
        self._waiting: list[tuple[Answer, asyncio.Future[None]]] = []
        self._turn = asyncio.Lock()

    async def keep(self, answer: Answer) -> None:
        """Returns when the answer is on the disk. Raises as `Leases.record`."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, kept))
        async with self._turn:
            if not kept.done():
                await self._commit()
        await kept

    async def _commit(self) -> None:
        group, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
        try:
            await self._leases.record(self._batch_id, [answer for answer, _ in group])
        except BaseException as error:
            for _, kept in group:
                if not kept.done():
                    kept.set_exception(error if isinstance(error, Exception) else ConnectionAbortedError())
            raise
        for _, kept in group:
            if not kept.done():
                kept.set_result(None)
