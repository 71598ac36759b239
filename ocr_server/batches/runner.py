"""Takes batches from the database, processes them, renews their leases, and deletes old files and batches."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from ocr_server.batches.budget import RequestBudget
from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.files import Files
from ocr_server.batches.leases import Leases, LostLease
from ocr_server.batches.run import Run
from ocr_server.batches.signing import Signer
from ocr_server.batches.sources import requests_of
from ocr_server.batches.store import Store
from ocr_server.batches.stored_files import OwnFiles
from ocr_server.errors import ApiError
from ocr_server.runtime import Runtime
from ocr_server.transport.keys import KeyRing

logger = logging.getLogger(__name__)

MAX_RUNS = 8
"""Maximum number of batches that are processed at a time. Their requests take turns."""
POLL_SECONDS = 1.0
"""Time between two looks at the database."""
SWEEP_SECONDS = 60.0
"""Time between two deletions of old files and batches."""
ORPHANS_SECONDS = 6 * 3600.0
"""Time between two looks for stored bytes without a file."""
BACKOFF_SECONDS = 5.0
"""Time for which no batch is taken after a failure that is not the failure of a request."""


@dataclass
class ActiveRun:
    """A batch that is being processed."""

    run: Run
    task: asyncio.Task[None]


class Runner:
    """Processes batches in the background. Create one object for each server."""

    def __init__(
        self,
        runtime: Runtime,
        endpoints: Endpoints,
        leases: Leases,
        store: Store,
        files: Files,
        signer: Signer,
        clock: SteadyClock,
        keys: KeyRing,
    ) -> None:
        settings = runtime.settings
        self._runtime = runtime
        self._endpoints = endpoints
        self._leases = leases
        self._store = store
        self._files = files
        self._signer = signer
        self._clock = clock
        self._keys = keys
        self._budget = RequestBudget(requests=settings.batch_concurrency, memory=runtime.memory)
        self._poll = min(POLL_SECONDS, settings.BATCH_LEASE / 3)
        self._active: dict[str, ActiveRun] = {}
        self._swept = self._orphans_swept = -math.inf
        self._paused_until = 0.0
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start processing batches."""
        self._loop = asyncio.create_task(self._work())

    def wake(self) -> None:
        """Look at the database now, since something has changed."""
        self._woken.set()

    async def stop(self) -> None:
        """Stop processing. Another server, or this one after a restart, continues the batches."""
        tasks = [active.task for active in self._active.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        known_time = False
        while True:
            try:
                if not known_time:
                    await self._clock.load()
                    known_time = True
                await self._renew()
                while time.monotonic() >= self._paused_until and await self._start_next():
                    pass
                await self._sweep()
            except ApiError:
                pass  # it has been logged
            except Exception:
                logger.exception("batches cannot be processed")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._woken.wait()
            self._woken.clear()

    async def _renew(self) -> None:
        """Renew the leases, and stop batches that were cancelled, have expired or were lost."""
        held = await self._leases.renew(list(self._active))
        for batch_id, active in list(self._active.items()):
            if batch_id not in held:
                active.task.cancel()
                continue
            active.run.storage_full = held[batch_id].storage_full
            if held[batch_id].status == "cancelling":
                active.run.halt("cancelled")
            elif held[batch_id].has_expired:
                active.run.halt("expired")

    async def _start_next(self) -> bool:
        """Start or continue a batch, and return whether there was one."""
        clients = {batch_id: active.run.batch["client"] for batch_id, active in self._active.items()}
        batch = await self._leases.claim(
            clients, endpoints=self._endpoints.keys(), accept_open=len(self._active) < MAX_RUNS
        )
        if batch is None:
            return False
        requests = requests_of(batch, self._files.storage, self._runtime, self._endpoints)
        run = Run(
            self._runtime,
            self._endpoints[batch["endpoint"]],
            self._leases,
            self._files.storage,
            requests,
            self._budget,
            self._clock,
            self._keys,
            OwnFiles(self._files, self._signer, batch["client"]),
            batch,
        )
        self._active[batch["id"]] = ActiveRun(run, asyncio.create_task(self._run(run)))
        return True

    async def _run(self, run: Run) -> None:
        batch_id: str = run.batch["id"]
        try:
            await run.go()
        except LostLease:
            logger.warning("%s was taken over by another server", batch_id)
        except ApiError as error:
            self._back_off(batch_id, error)
        except Exception as error:
            logger.exception("%s failed unexpectedly and will be continued", batch_id)
            self._back_off(batch_id, error)
        finally:
            try:
                with suppress(ApiError):
                    await self._leases.release(batch_id)
            finally:
                del self._active[batch_id]
                self.wake()

    def _back_off(self, batch_id: str, error: Exception) -> None:
        self._paused_until = time.monotonic() + BACKOFF_SECONDS
        logger.warning("%s is interrupted and will be continued: %s", batch_id, type(error).__name__)

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept >= SWEEP_SECONDS:
            self._swept = time.monotonic()
            await self._store.adopt(self._keys.owners_of_labels())
            await self._files.sweep()
            await self._store.sweep()
            await self._clock.save()
            if time.monotonic() - self._orphans_swept >= ORPHANS_SECONDS:
                self._orphans_swept = time.monotonic()
                await self._files.sweep_orphans()
