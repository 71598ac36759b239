"""What a database and a storage must do: SQLite and a folder, or those that the environment names.

BATCHES_DATABASE_URL=postgresql+psycopg://… BATCHES_STORAGE_URL=s3://… python -m pytest …
"""

from __future__ import annotations

import asyncio
import os
import uuid

import openai
import pytest

from ocr_server.batches.leases import Answer, LostLease
from tests.ocr_server.batches.conftest import Serve, request
from tests.ocr_server.conftest import FakeEngine, never, until

GIVEN = {
    name: url for name in ("DATABASE_URL", "STORAGE_URL") if (url := os.environ.get(f"BATCHES_{name}")) is not None
}


@pytest.fixture
def key() -> str:
    """A client that has nothing yet."""
    return f"sk-{uuid.uuid4().hex}"


async def test_a_batch_from_its_upload_to_its_files(serve: Serve, key: str) -> None:
    async with serve(**GIVEN, API_KEYS=key) as served:
        served.api = served.sdk(key)
        lines = [request(f"r{number}") for number in range(150)] + [request("wrong", {})]
        done = await served.ended(await served.batch(lines, metadata={"a": "ü"}))
        assert done.request_counts.model_dump() == {"total": 151, "completed": 150, "failed": 1}
        assert list(await served.lines(done.output_file_id)) == [f"r{number}" for number in range(150)]
        assert list(await served.lines(done.error_file_id)) == ["wrong"]
        assert [batch.id async for batch in served.api.batches.list(limit=1)] == [done.id]
        files = [file.id async for file in served.api.files.list(limit=1)]
        assert sorted(files) == sorted([done.input_file_id, done.output_file_id, done.error_file_id])
        for file_id in files:
            await served.api.files.delete(file_id)
            with pytest.raises(openai.NotFoundError):
                await served.api.files.content(file_id)
        failed = await served.ended(await served.batch(["{"]))
        assert failed.errors.data[0].line == 1


async def test_a_lease_is_one_servers(serve: Serve, key: str) -> None:
    async with serve(FakeEngine(never), **GIVEN, API_KEYS=key, BATCH_LEASE=1) as first:
        first.api = first.sdk(key)
        batch = await first.batch([request("a")])
        await until(lambda: len(first.engine.pages) == 1)
        async with serve(**GIVEN, API_KEYS=key, BATCH_LEASE=1) as second:
            await asyncio.sleep(3)
            assert second.engine.pages == [], "it is held, and stays so"
            theirs = second.app.state.batches.runner._leases
            with pytest.raises(LostLease):
                await theirs.record(batch.id, [Answer(1, True, "{}")])
            await first.app.state.batches.runner.stop()
            second.api = second.sdk(key)
            assert (await second.ended(batch)).request_counts.completed == 1
