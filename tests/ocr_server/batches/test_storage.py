"""The storage of files: what its threads may delay."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from ocr_server.batches.storage import THREADS, Storage
from ocr_server.errors import NotFound
from ocr_server.observability import logs


async def test_a_silent_storage_delays_no_other_work(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # storages of other tests may not have ended yet
    storage, answers = Storage(str(tmp_path)), threading.Event()
    waiting = [asyncio.create_task(storage.run(answers.wait)) for _ in range(100)]
    try:
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: "done") == "done"
        begun = set(threading.enumerate()) - before
        assert sum(thread.name.startswith("storage") for thread in begun) == THREADS
    finally:
        answers.set()
        await asyncio.gather(*waiting)


async def test_its_log_knows_the_request(tmp_path: Path) -> None:
    logs.request_id.set("req_1")
    assert await Storage(str(tmp_path)).run(logs.request_id.get) == "req_1"


async def test_a_download(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    await storage.run(storage.write, "file", [b"a" * 3_000_000, b"b"])
    assert b"".join([chunk async for chunk in storage.download("file")]) == b"a" * 3_000_000 + b"b"
    with pytest.raises(NotFound):
        await anext(storage.download("other"))
