"""Takes up batches, as many as there is room for, keeps their leases, and clears away what is old."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from ocr_server.batches.budget import RequestBudget
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.files import Files
from ocr_server.batches.leases import Leases, LostLease
from ocr_server.batches.run import Run
from ocr_server.batches.sources import requests_of
from ocr_server.batches.store import Store
from ocr_server.errors import ApiError
from ocr_server.runtime import MEGA, Runtime

logger = logging.getLogger(__name__)

MOST_RUNS = 8
"""Batches that are worked on at a time: their requests take turns."""
POLL_SECONDS = 1.0
SWEEP_SECONDS = 60.0
REST_SECONDS = 5.0
"""After a failure that is no request's, before anything is taken up again."""


@dataclass
class Going:
    """A batch that is worked on."""

    run: Run
    task: asyncio.Task[None]


class Runner:
    """One for the server."""

    def __init__(self, runtime: Runtime, endpoints: Endpoints, leases: Leases, store: Store, files: Files) -> None:
        settings = runtime.settings
        self._runtime = runtime
        self._endpoints = endpoints
        self._leases = leases
        self._store = store
        self._files = files
        self._budget = RequestBudget(requests=settings.batch_concurrency, size=settings.MAX_BODIES_MB * MEGA)
        self._poll = min(POLL_SECONDS, settings.BATCH_LEASE / 3)
        self._going: dict[str, Going] = {}
        self._swept = self._rests_until = 0.0
        self._woken = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._work())

    def wake(self) -> None:
        """There is something new to look at."""
        self._woken.set()

    async def stop(self) -> None:
        """Give up what is under way; another server, or this one started again, goes on."""
        tasks = [going.task for going in self._going.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await self._keep()
                while time.monotonic() >= self._rests_until and await self._take_up():
                    pass
                await self._sweep()
            except ApiError:
                pass  # the log has it
            except Exception:
                logger.exception("batches can't be taken up")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._woken.wait()
            self._woken.clear()

    async def _keep(self) -> None:
        """Renew the leases, and see what was asked for meanwhile."""
        held = await self._leases.renew(list(self._going))
        for batch_id, going in list(self._going.items()):
            if batch_id not in held:
                going.task.cancel()
                continue
            going.run.storage_full = held[batch_id].storage_full
            if held[batch_id].status == "cancelling":
                going.run.halt("cancelled")
            elif going.run.batch["expires_at"] <= time.time():
                going.run.halt("expired")

    async def _take_up(self) -> bool:
        """Begin one batch, or go on with it; whether there was one."""
        own = {batch_id: going.run.batch["client"] for batch_id, going in self._going.items()}
        batch = await self._leases.claim(own, room=len(self._going) < MOST_RUNS)
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
            batch,
        )
        self._going[batch["id"]] = Going(run, asyncio.create_task(self._run(run)))
        return True

    async def _run(self, run: Run) -> None:
        batch_id: str = run.batch["id"]
        try:
            await run.go()
        except LostLease:
            logger.warning("%s was taken over by another server", batch_id)
        except ApiError as error:
            self._rest(batch_id, error)
        except Exception as error:
            logger.exception("%s broke off; it is taken up again", batch_id)
            self._rest(batch_id, error)
        finally:
            try:
                with suppress(ApiError):
                    await self._leases.release(batch_id)
            finally:
                del self._going[batch_id]
                self.wake()

    def _rest(self, batch_id: str, error: Exception) -> None:
        self._rests_until = time.monotonic() + REST_SECONDS
        logger.warning("%s waits: %s", batch_id, type(error).__name__)

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept >= SWEEP_SECONDS:
            self._swept = time.monotonic()
            await self._files.sweep()
            await self._store.sweep()
