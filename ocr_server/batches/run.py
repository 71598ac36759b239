"""One batch, from where it stands to its end. It may have been begun by a server that is no more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from sqlalchemy import RowMapping

from ocr_server.batches.answer import answered, unanswered
from ocr_server.batches.budget import RequestBudget
from ocr_server.batches.endpoint import Endpoint
from ocr_server.batches.leases import Leases
from ocr_server.batches.output import write_files
from ocr_server.batches.recorder import Recorder
from ocr_server.batches.requests import Checked, Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.errors import NotFound
from ocr_server.observability import metrics
from ocr_server.runtime import Runtime

logger = logging.getLogger(__name__)

REASONS = {
    "expired": ("batch_expired", "The batch's completion window ended before this request was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
}
STORAGE_FULL = ("storage_full", "The server stores as many bytes as it may; this request was not begun.")


@dataclass
class Run:
    """A batch whose lease is held."""

    runtime: Runtime
    endpoint: Endpoint
    leases: Leases
    storage: Storage
    requests: Requests
    budget: RequestBudget
    batch: RowMapping
    storage_full: bool = False
    """What is not begun fails."""
    _halted: str | None = None
    _working: asyncio.Task[None] | None = None

    def halt(self, reason: str) -> None:
        """Begin and finish no more requests: the batch is cancelled, or has expired."""
        if self._halted is None:
            self._halted = reason
            if self._working is not None:
                self._working.cancel()

    async def go(self) -> None:
        """To the end.

        Raises:
            LostLease: another server has the batch.
            Unavailable: the database or the storage can't be used; what is recorded stays.
        """
        try:
            if self.batch["status"] == "validating" and not self._over() and not await self._begin():
                self._ended("failed")
                return
            if self.batch["status"] == "in_progress" and not self._over():
                await self._work()
            await self._finish()
        finally:
            await self.requests.close()

    def _over(self) -> bool:
        return self._halted is not None or self.batch["expires_at"] <= time.time()

    async def _begin(self) -> bool:
        """Look through the input; whether it is sound."""
        try:
            checked = await self.requests.check()
        except NotFound as error:
            checked = Checked().refused(error)
        if checked.errors:
            await self.leases.fail(self.batch["id"], checked.errors)
            await self._look_again()
            return bool(self.batch["status"] != "failed")
        await self.leases.begin(self.batch["id"], checked.total)
        await self._look_again()
        return True

    async def _look_again(self) -> None:
        self.batch = await self.leases.get(self.batch["id"])

    async def _work(self) -> None:
        done = await self.leases.answered(self.batch["id"])
        self._working = asyncio.create_task(self._answer_all(done))
        try:
            if self._halted is None:
                await self._working
        except asyncio.CancelledError:
            if self._halted is None or not self._working.done():
                raise
        finally:
            self._working.cancel()
            await asyncio.wait({self._working})

    async def _answer_all(self, done: Collection[int]) -> None:
        recorder = Recorder(self.leases, self.batch["id"])
        try:
            async with asyncio.TaskGroup() as group, aclosing(self.requests.items(done)) as items:
                async for item in items:
                    size = len(item.body)
                    await self.budget.enter(size)
                    # Not in a `finally` of the request's own: cancelled before its first step, it would not get there.
                    group.create_task(self._one(item, recorder)).add_done_callback(partial(self._leave, size))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # they have one cause, or the first was enough

    def _leave(self, size: int, _: object) -> None:
        self.budget.leave(size)

    async def _one(self, item: Item, recorder: Recorder) -> None:
        if self.storage_full:
            answer = unanswered(item, *STORAGE_FULL)
        else:
            answer = await answered(self.runtime, self.endpoint, item, self.batch["client"])
        await recorder.keep(answer)
        metrics.BATCH_REQUESTS.labels(outcome="completed" if answer.succeeded else "failed").inc()

    async def _finish(self) -> None:
        await self.leases.close(self.batch["id"])
        await self._look_again()
        batch = self.batch
        rest = batch["total"] - batch["completed"] - batch["failed"]
        status = "cancelled" if batch["status"] == "cancelling" else "expired"
        if batch["status"] == "finalizing" and rest == 0 and batch["in_progress_at"] is not None:
            status = "completed"
        code, message = REASONS.get(status, ("", ""))
        left = await write_files(
            self.storage, self.leases, batch, self.requests, lambda item: unanswered(item, code, message).text, rest
        )
        await self.leases.end(batch, status, left, unanswered=rest)
        self._ended(status, rest)

    def _ended(self, status: str, rest: int = 0) -> None:
        batch = self.batch
        metrics.BATCHES.labels(status=status).inc()
        logger.info(
            "%s %s: %d requests, %d completed, %d failed, %.0f s, client=%s",
            batch["id"],
            status,
            batch["total"],
            batch["completed"],
            batch["failed"] + rest,
            time.time() - batch["created_at"],
            batch["client"],
        )
