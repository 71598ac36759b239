"""The database and the storage: SQLite and a folder, or those that the environment names.

BATCHES_DATABASE_URL=postgresql+psycopg://… BATCHES_STORAGE_URL=s3://… python -m pytest …
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid

import openai
import pytest
from sqlalchemy import select

from ocr_server.batches.database import batches
from ocr_server.batches.files import Quota
from ocr_server.batches.leases import BatchAnswer, Leases, LostLease
from ocr_server.dialects.registry import DIALECTS
from tests.ocr_server.batches.conftest import Serve, Served, request
from tests.ocr_server.conftest import FakeEngine, never, until

GIVEN = {
    name: url for name in ("DATABASE_URL", "STORAGE_URL") if (url := os.environ.get(f"BATCHES_{name}")) is not None
}

ENDPOINTS = list(DIALECTS)


@pytest.fixture
def key() -> str:
    """The key of a client that has no files and batches yet."""
    return f"sk-{uuid.uuid4().hex}"


@pytest.mark.slow
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


def leases_of(served: Served, seconds: float = 60) -> Leases:
    """The leases of another server that shares the database of `served`."""
    state = served.app.state.batches
    return Leases(state.database, state.files, Quota(of_all=1 << 30, of_client=0), seconds=seconds, clock=state.clock)


async def lease_end(served: Served, batch_id: str) -> float:
    """Unix time at which the lease of a batch ends."""
    select_end = select(batches.c.lease_until).where(batches.c.id == batch_id)
    end: float = await served.app.state.batches.database.run(lambda connection: connection.execute(select_end).scalar())
    return end


@pytest.mark.slow
async def test_only_one_server_holds_the_lease_of_a_batch(serve: Serve, key: str) -> None:
    """And renews it. When it stops, another server continues the batch."""
    async with serve(FakeEngine(never), **GIVEN, API_KEYS=key, BATCH_LEASE=60) as first:
        first.api = first.sdk(key)
        batch = await first.batch([request("a")])
        await until(lambda: len(first.engine.pages) == 1)
        async with serve(**GIVEN, API_KEYS=key, BATCH_LEASE=60) as second:
            before = await lease_end(first, batch.id)
            assert before > time.time()
            async with asyncio.timeout(20):
                while await lease_end(first, batch.id) == before:  # noqa: ASYNC110  # the database has no event
                    await asyncio.sleep(0.05)
            theirs = leases_of(second, 60)
            assert await theirs.claim({}, endpoints=ENDPOINTS, accept_open=True) is None
            with pytest.raises(LostLease):
                await theirs.record(batch.id, group=[BatchAnswer(1, True, "{}")])
            assert second.engine.pages == []
            await first.app.state.batches.runner.stop()
            second.api = second.sdk(key)
            assert (await second.ended(batch)).request_counts.completed == 1


async def test_a_server_leaves_batches_of_endpoints_that_it_does_not_have(serve: Serve, key: str) -> None:
    """They may be for a newer server that shares the database."""
    async with serve(**GIVEN, API_KEYS=key) as served:
        await served.app.state.batches.runner.stop()
        served.api = served.sdk(key)
        batch = await served.batch([request("a")])
        leases = leases_of(served)
        assert await leases.claim({}, endpoints=["/v1/ocr"], accept_open=True) is None
        claimed = await leases.claim({}, endpoints=ENDPOINTS, accept_open=True)
        assert claimed is not None
        assert claimed["id"] == batch.id


async def test_without_accept_open_only_batches_that_are_to_be_closed_are_taken(serve: Serve, key: str) -> None:
    async with serve(**GIVEN, API_KEYS=key) as served:
        await served.app.state.batches.runner.stop()
        served.api = served.sdk(key)
        batch = await served.batch([request("a")])
        leases = leases_of(served)
        assert await leases.claim({}, endpoints=ENDPOINTS, accept_open=False) is None
        await served.api.batches.cancel(batch.id)
        claimed = await leases.claim({}, endpoints=ENDPOINTS, accept_open=False)
        assert claimed is not None
        assert claimed["id"] == batch.id


async def test_the_endpoints_of_batches_are_the_dialects(serve: Serve) -> None:
    async with serve() as served:
        assert served.app.state.batches.endpoints == DIALECTS
