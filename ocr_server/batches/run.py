"""Processes one batch from its current state to its end. Another server may have started it."""

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
from ocr_server.batches.requests import CheckResult, Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.errors import NotFound
from ocr_server.memory import Reservation
from ocr_server.observability import metrics
from ocr_server.runtime import Runtime

logger = logging.getLogger(__name__)

UNANSWERED = {
    "expired": ("batch_expired", "The completion window of the batch ended before this request was processed."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was processed."),
}
"""Final status → code and message for the requests that were not processed."""
STORAGE_FULL = ("storage_full", "The storage quota is exceeded. This request was not processed.")


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
    """Whether requests that have not been started fail, since the storage quota is exceeded."""
    _halted: str | None = None
    _working: asyncio.Task[None] | None = None

    def halt(self, reason: str) -> None:
        """Stop processing requests, since the batch has been cancelled or has expired."""
        if self._halted is None:
            self._halted = reason
            if self._working is not None:
                self._working.cancel()

    async def go(self) -> None:
        """Process the batch to its end.

        Raises:
            LostLease: Another server has taken over the batch.
            Unavailable: The database or the storage is unavailable. The recorded answers are kept.
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
        """Check the input, and return whether it is valid."""
        try:
            checked = await self.requests.check()
        except NotFound as error:
            checked = CheckResult().with_error(error)
        if checked.errors:
            await self.leases.fail(self.batch["id"], checked.errors)
            await self._reload()
            return bool(self.batch["status"] != "failed")
        await self.leases.begin(self.batch["id"], checked.total)
        await self._reload()
        return True

    async def _reload(self) -> None:
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
                    body = await self.budget.enter(len(item.body))
                    # Not in a `finally` of the task: it would not run if the task is cancelled before its first step.
                    group.create_task(self._one(item, recorder)).add_done_callback(partial(self._leave, body))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # all have the same cause, or the first one is enough

    def _leave(self, body: Reservation, _: object) -> None:
        self.budget.leave(body)

    async def _one(self, item: Item, recorder: Recorder) -> None:
        if self.storage_full:
            answer = unanswered(item, *STORAGE_FULL)
        else:
            answer = await answered(self.runtime, self.endpoint, item, self.batch["client"])
        await recorder.keep(answer)
        metrics.BATCH_REQUESTS.labels(outcome="completed" if answer.succeeded else "failed").inc()

    async def _finish(self) -> None:
        await self.leases.close(self.batch["id"])
        await self._reload()
        batch = self.batch
        remaining = batch["total"] - batch["completed"] - batch["failed"]
        status = "cancelled" if batch["status"] == "cancelling" else "expired"
        if batch["status"] == "finalizing" and remaining == 0 and batch["in_progress_at"] is not None:
            status = "completed"
        code, message = UNANSWERED.get(status, ("", ""))
        written = await write_files(
            self.storage,
            self.leases,
            batch,
            self.requests,
            lambda item: unanswered(item, code, message).text,
            remaining,
        )
        await self.leases.end(batch, status, written, unanswered=remaining)
        self._ended(status, remaining)

    def _ended(self, status: str, remaining: int = 0) -> None:
        batch = self.batch
        metrics.BATCHES.labels(status=status).inc()
        logger.info(
            "%s %s: %d requests, %d completed, %d failed, %.0f s, client=%s",
            batch["id"],
            status,
            batch["total"],
            batch["completed"],
            batch["failed"] + remaining,
            time.time() - batch["created_at"],
            batch["client"],
        )
