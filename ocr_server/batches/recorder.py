"""Commits which requests are begun, and their answers.

What arrives at the same time shares a commit, since each commit waits for the disk.
"""

from __future__ import annotations

import asyncio

from ocr_server.batches.leases import BatchAnswer, Leases

MAX_AT_ONCE = 64
"""Maximum number of requests and answers in a commit."""


class Recorder:
    """Records the progress of one batch."""

    def __init__(self, leases: Leases, batch_id: str) -> None:
        self._leases = leases
        self._batch_id = batch_id
        self._waiting: list[tuple[int | BatchAnswer, asyncio.Future[None]]] = []
        self._turn = asyncio.Lock()

    async def begin(self, line: int) -> None:
        """Record that a request is about to be processed, so that a death of the server is noticed by the next one.

        Raises as `Leases.record`.
        """
        await self._recorded(line)

    async def keep(self, answer: BatchAnswer) -> None:
        """Record an answer. It is on the disk when this returns. Raises as `Leases.record`."""
        await self._recorded(answer)

    async def _recorded(self, entry: int | BatchAnswer) -> None:
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, kept))
        try:
            async with self._turn:
                if not kept.done():
                    await self._commit()
            await kept
        finally:
            if not kept.cancel() and not kept.cancelled():
                kept.exception()  # it has been raised, or nobody waits for it any more

    async def _commit(self) -> None:
        group, self._waiting = self._waiting[:MAX_AT_ONCE], self._waiting[MAX_AT_ONCE:]
        try:
            await self._leases.record(
                self._batch_id,
                begun=[entry for entry, _ in group if isinstance(entry, int)],
                group=[entry for entry, _ in group if isinstance(entry, BatchAnswer)],
            )
        except BaseException as error:
            for _, kept in group:
                if not kept.done():
                    kept.set_exception(error if isinstance(error, Exception) else ConnectionAbortedError())
            raise
        for _, kept in group:
            if not kept.done():
                kept.set_result(None)
