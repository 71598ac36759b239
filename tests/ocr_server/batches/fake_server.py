"""A server process with batches and a fake engine: `python fake_server.py PORT FOLDER SECONDS_PER_PAGE`.

The engine appends the seed of every page that it reads to FOLDER/read, one on each line. The server kills itself when
it reads a page with the seed POISON or opens an input file that contains POISON_INPUT.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

import uvicorn

from config import EMBEDDED_CHECKPOINT, Settings
from ocr_server.app import create_app
from ocr_server.batches.storage import Storage
from ocr_server.observability import logs
from ocr_server.reading.page import Page, PageDelta
from ocr_server.runtime import Runtime
from tests.ocr_server.conftest import FakeEngine, delta

POISON = 666_666
POISON_INPUT = b"poisonous input"


class DeadlyStorage(Storage):
    """A storage whose input files can kill the server."""

    def open(self, name: str) -> BinaryIO:
        file = super().open(name)
        if POISON_INPUT in file.read():
            os.kill(os.getpid(), signal.SIGKILL)
        file.seek(0)
        return file


def main(port: str, folder: str, seconds: str) -> None:
    log = (Path(folder) / "read").open("a", buffering=1)

    async def reads(_: int, page: Page) -> AsyncGenerator[PageDelta]:
        await asyncio.sleep(float(seconds))
        if page.decoding.seed == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        print(page.decoding.seed, file=log)
        yield delta(f"read {page.decoding.seed}", finish="stop")

    engine = FakeEngine(reads)
    engine.forgets = True
    settings = Settings(
        MODEL_PATH=str(EMBEDDED_CHECKPOINT),
        PREPARE_THREADS=1,
        DECODE_WORKERS=1,
        DATABASE_URL=f"sqlite:///{folder}/batches.db",
        STORAGE_URL=f"{folder}/files",
        BATCH_LEASE=1.5,
        BATCH_CONCURRENCY=16,
    )
    logs.set_up("info", "text")
    app = create_app(Runtime.build(settings, engine))
    app.state.batches.files.storage = DeadlyStorage(settings.storage_url)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_config=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
