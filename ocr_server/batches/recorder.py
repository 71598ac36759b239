"""Commits answers as they arrive. Those that arrive at the same time share a commit, since each waits for the disk."""

from __future__ import annotations

import asyncio

from ocr_server.batches.leases import BatchAnswer, Leases

MAX_AT_ONCE = 64
"""Maximum number of answers in a commit."""


class Recorder:
    """Records the answers of one batch."""

    def __init__(self, leases: Leases, batch_id: str) -> None:
        self._leases = leases
        self._batch_id = batch_id
        self._waiting: list[tuple[BatchAnswer, asyncio.Future[None]]] = []
        self._turn = asyncio.Lock()

    async def keep(self, answer: BatchAnswer) -> None:
        """Record an answer. It is on the disk when this returns. Raises as `Leases.record`."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, kept))
        async with self._turn:
            if not kept.done():
                await self._commit()
        await kept

    async def _commit(self) -> None:
        group, self._waiting = self._waiting[:MAX_AT_ONCE], self._waiting[MAX_AT_ONCE:]
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
