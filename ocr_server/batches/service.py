"""Files and batches, put together for an app."""

from __future__ import annotations

from dataclasses import dataclass

from ocr_server.batches.database import Database
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.files import Files, Quota
from ocr_server.batches.leases import Leases
from ocr_server.batches.runner import Runner
from ocr_server.batches.storage import Storage
from ocr_server.batches.store import Store
from ocr_server.runtime import MEGA, Runtime


@dataclass(frozen=True)
class Batches:
    endpoints: Endpoints
    """Those whose requests a batch may have."""
    database: Database
    files: Files
    store: Store
    runner: Runner

    def start(self) -> None:
        self.runner.start()

    async def close(self) -> None:
        await self.runner.stop()
        await self.database.close()


def batches_for(runtime: Runtime, endpoints: Endpoints) -> Batches:
    """As the settings have it. Nothing is opened before it is used."""
    settings = runtime.settings
    quota = Quota(of_all=settings.MAX_STORED_MB * MEGA, of_client=settings.MAX_STORED_MB_OF_CLIENT * MEGA)
    database = Database(settings.database_url)
    files = Files(database, Storage(settings.storage_url), quota, days=settings.FILE_DAYS)
    store = Store(database, most_of_client=settings.MAX_BATCHES_OF_CLIENT, days=settings.FILE_DAYS)
    leases = Leases(database, files, quota, seconds=settings.BATCH_LEASE)
    return Batches(endpoints, database, files, store, Runner(runtime, endpoints, leases, store, files))
