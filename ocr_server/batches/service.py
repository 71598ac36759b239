"""The components of files and batches, as an application uses them."""

from __future__ import annotations

from dataclasses import dataclass

from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.database import Database
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.files import Files, Quota
from ocr_server.batches.leases import Leases
from ocr_server.batches.runner import Runner
from ocr_server.batches.signing import Signer
from ocr_server.batches.storage import Storage
from ocr_server.batches.store import Store
from ocr_server.batches.stored_files import OwnFiles
from ocr_server.runtime import MEGA, Runtime
from ocr_server.transport.keys import KeyRing


@dataclass(frozen=True)
class Batches:
    """Files and batches of an application."""

    endpoints: Endpoints
    """The endpoints that can be used in batches."""
    database: Database
    clock: SteadyClock
    files: Files
    signer: Signer
    store: Store
    runner: Runner

    def files_of(self, client: str) -> OwnFiles:
        """Return what the intake reads of a client's files."""
        return OwnFiles(self.files, self.signer, client)

    def start(self) -> None:
        """Start processing batches."""
        self.runner.start()

    async def close(self) -> None:
        """Stop processing batches, and close the database."""
        await self.runner.stop()
        await self.database.close()


def batches_for(runtime: Runtime, endpoints: Endpoints, keys: KeyRing) -> Batches:
    """Build the components according to the settings. The database and the storage are opened at their first use."""
    settings = runtime.settings
    quota = Quota(of_all=settings.MAX_STORED_MB * MEGA, of_client=settings.max_stored_mb_of_client * MEGA)
    database = Database(settings.database_url)
    clock = SteadyClock(database)
    files = Files(database, Storage(settings.storage_url), quota, days=settings.FILE_DAYS, clock=clock)
    store = Store(database, max_of_client=settings.MAX_BATCHES_OF_CLIENT, days=settings.FILE_DAYS, clock=clock)
    leases = Leases(database, files, quota, seconds=settings.BATCH_LEASE, clock=clock)
    signer = Signer(database)
    runner = Runner(runtime, endpoints, leases, store, files, signer, clock, keys)
    return Batches(endpoints, database, clock, files, signer, store, runner)
