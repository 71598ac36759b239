"""Processes one batch from its current state to its end. Another server may have started it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import RowMapping

from ocr_server.batches.answer import answered, unanswered
from ocr_server.batches.budget import Place, RequestBudget
from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.endpoint import Endpoint
from ocr_server.batches.leases import INPUT, Leases
from ocr_server.batches.output import write_files
from ocr_server.batches.recorder import Recorder
from ocr_server.batches.requests import CheckResult, Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.batches.stored_files import OwnFiles
from ocr_server.errors import NotFound
from ocr_server.observability import metrics
from ocr_server.runtime import Runtime
from ocr_server.session import Caller
from ocr_server.transport.keys import KeyRing

logger = logging.getLogger(__name__)

UNANSWERED = {
    "expired": ("batch_expired", "The completion window of the batch ended before this request was processed."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was processed."),
}
"""Final status → code and message for the requests that were not processed."""
MAX_DEATHS = 3
"""Number of servers that may die while they process a request or open an input file."""
REQUEST_CRASHED = (
    "request_crashed_server",
    f"The server died {MAX_DEATHS} times while it processed this request, which is not tried again.",
)
INPUT_CRASHED = (
    "input_crashed_server",
    f"The server died {MAX_DEATHS} times while it opened the input file, which is not tried again.",
)
QUOTA_POLL_SECONDS = 5.0
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
    clock: SteadyClock
    keys: KeyRing
    files: OwnFiles
    batch: RowMapping
    storage_full: bool = False
    """Whether requests that have not been started fail, since the storage quota is exceeded."""
    _deaths: Mapping[int, int] = field(default_factory=dict)
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
            self._deaths = await self.leases.deaths(self.batch["id"])
            if self.batch["status"] == "validating" and not self._over() and not await self._begin():
                self._ended("failed")
                return
            if self.batch["status"] == "in_progress" and not self._over() and not self._has_crashed(INPUT):
                await self._work()
            await self._finish()
        finally:
            await self.requests.close()

    def _over(self) -> bool:
        return self._halted is not None or self.batch["expires_at"] <= self.clock.now()

    def _has_crashed(self, line: int) -> bool:
        """Return whether a request, or `INPUT`, has killed the server so often that it is not tried again."""
        return self._deaths.get(line, 0) >= MAX_DEATHS

    async def _begin(self) -> bool:
        """Check the input, and return whether it is valid."""
        checked = CheckResult()
        if self._has_crashed(INPUT):
            checked.add_error(*INPUT_CRASHED, param="input_file_id")
        else:
            try:
                async with self._place_for_input():
                    checked = await self.requests.check()
            except NotFound as error:
                checked.with_error(error)
        if checked.errors:
            await self.leases.fail(self.batch["id"], checked.errors)
            await self._reload()
            return bool(self.batch["status"] != "failed")
        await self.leases.begin(self.batch["id"], checked.total)
        await self._reload()
        return True

    @asynccontextmanager
    async def _place_for_input(self) -> AsyncGenerator[None]:
        """While an input is opened that may have killed a server, no other requests are processed."""
        deaths = self._deaths.get(INPUT, 0)
        if deaths == 0:
            yield
            return
        place = await self.budget.enter(0, self.budget.share(deaths))
        try:
            yield
        finally:
            self.budget.leave(place)

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
                async with self._place_for_input():
                    item = await anext(items, None)
                while item is not None:
                    await self._quota_left()
                    places = self.budget.share(self._deaths.get(item.line, 0))
                    place = await self.budget.enter(len(item.body), places)
                    # Not in a `finally` of the task: it would not run if the task is cancelled before its first step.
                    group.create_task(self._one(item, recorder)).add_done_callback(partial(self._leave, place))
                    item = await anext(items, None)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # all have the same cause, or the first one is enough

    def _caller(self) -> Caller:
        client = self.batch["client"]
        return Caller(client=client, in_background=True, files=self.files, quota=self.keys.quota_of(client))

    async def _quota_left(self) -> None:
        """Wait until the client has any pages left of its daily quota."""
        while (quota := self._caller().quota) is not None and not quota.has_pages():  # noqa: ASYNC110  # no event
            await asyncio.sleep(QUOTA_POLL_SECONDS)

    def _leave(self, place: Place, _: object) -> None:
        self.budget.leave(place)

    async def _one(self, item: Item, recorder: Recorder) -> None:
        if self.storage_full:
            answer = unanswered(item, *STORAGE_FULL)
        elif self._has_crashed(item.line):
            logger.error("%s: request %d has killed the server and is not tried again", self.batch["id"], item.line)
            answer = unanswered(item, *REQUEST_CRASHED)
        else:
            await recorder.begin(item.line)
            answer = await answered(self.runtime, self.endpoint, item, self._caller())
        await recorder.keep(answer)
        metrics.BATCH_REQUESTS.labels(outcome="completed" if answer.succeeded else "failed").inc()

    async def _finish(self) -> None:
        await self.leases.close(self.batch["id"])
        await self._reload()
        batch = self.batch
        remaining = batch["total"] - batch["completed"] - batch["failed"]
        input_crashed, errors = self._has_crashed(INPUT), None
        status = "cancelled" if batch["status"] == "cancelling" else "expired"
        if batch["status"] == "finalizing" and remaining == 0 and batch["in_progress_at"] is not None:
            status = "completed"
        elif input_crashed:
            code, message = INPUT_CRASHED
            errors = [{"code": code, "message": message, "line": None, "param": "input_file_id"}]
            status = "cancelled" if status == "cancelled" else "failed"
        code, message = UNANSWERED.get(status, ("", ""))
        written = await write_files(
            self.storage,
            self.leases,
            batch,
            self.requests,
            lambda item: unanswered(item, code, message).text,
            0 if input_crashed else remaining,
        )
        await self.leases.end(batch, status, written, unanswered=remaining, errors=errors)
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
            self.keys.name_of(batch["client"]),
        )
