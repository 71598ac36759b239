"""Files and batches belong to a key, whatever its label is."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ocr_server.batches.conftest import Serve, Served, request
from tests.ocr_server.conftest import until


def key_id(key: str) -> str:
    return f"key_{hashlib.sha256(key.encode()).hexdigest()[:16]}"


async def made(served: Served, key: str) -> Any:
    """A batch of a key that has ended."""
    api = served.sdk(key)
    return await served.ended(await served.batch([request("a")], api), api=api)


async def seen(served: Served, key: str) -> set[str]:
    api = served.sdk(key)
    return {batch.id async for batch in api.batches.list()} | {file.id async for file in api.files.list()}


async def test_a_label_can_be_changed_and_removed(serve: Serve) -> None:
    async with serve(API_KEYS="alice:sk-a,bob:sk-b") as served:
        batch = await made(served, "sk-a")
    for keys in ("anna:sk-a,alice:sk-b", "sk-a,sk-b"):
        async with serve(API_KEYS=keys) as served:
            assert await seen(served, "sk-a") == {batch.id, batch.input_file_id, batch.output_file_id}
            assert await seen(served, "sk-b") == set()


async def test_two_keys_with_one_label_are_two_clients(serve: Serve) -> None:
    async with serve(API_KEYS="team:sk-a,team:sk-b") as served:
        await made(served, "sk-a")
        assert await seen(served, "sk-b") == set()


async def test_keys_can_share_an_owner(serve: Serve) -> None:
    """So that a key can be replaced: the new one gets the owner of the old one."""
    async with serve(API_KEYS="sk-a,sk-b owner=team") as served:
        first, second = await made(served, "sk-a"), await made(served, "sk-b")
    async with serve(API_KEYS=f"sk-new owner={key_id('sk-a')},sk-c owner=team") as served:
        assert first.id in await seen(served, "sk-new")
        assert second.id in await seen(served, "sk-c")


@pytest.mark.parametrize("keys", ["alice:sk-a,bob:sk-b,sk-c", "alice:sk-a,alice:sk-b,now:sk-c"])
async def test_what_belonged_to_a_label_belongs_to_its_key(serve: Serve, tmp_path: Path, keys: str) -> None:
    """Databases up to version 2 have labels. Of two keys with the same label, the first one gets it all."""
    async with serve(API_KEYS="alice:sk-a,sk-c") as served:
        batches = {key: await made(served, key) for key in ("sk-a", "sk-c")}
    labels = {"sk-a": "alice", "sk-c": hashlib.sha256(b"sk-c").hexdigest()[:8]}
    with closing(sqlite3.connect(tmp_path / "batches.db")) as database, database:
        for key, label in labels.items():
            for table in ("files", "batches"):
                database.execute(f"UPDATE {table} SET client = ? WHERE client = ?", (label, key_id(key)))
        database.execute("DROP TABLE secrets")  # version 4 added it
        database.execute("UPDATE schema_version SET version = 2")
    async with serve(API_KEYS=keys) as served:
        for key, batch in batches.items():
            expected = {batch.id, batch.input_file_id, batch.output_file_id}
            await adopted(served, key, expected)
        assert await seen(served, "sk-b") == set()


async def adopted(served: Served, key: str, expected: set[str]) -> None:
    found: set[str] = set()
    for _ in range(100):
        if (found := await seen(served, key)) == expected:
            return
    assert found == expected


async def test_a_batch_waits_when_the_quota_of_its_client_is_used_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the batches of others go on."""
    monkeypatch.setattr("ocr_server.batches.run.QUOTA_POLL_SECONDS", 0.02)
    async with serve(API_KEYS="sk-a pages_per_day=3,sk-b", BATCH_CONCURRENCY=1) as served:
        alice = served.sdk("sk-a")
        batch = await served.batch([request(str(number)) for number in range(5)], alice)
        assert (await made(served, "sk-b")).status == "completed"
        await until(lambda: len(served.engine.pages) == 5)  # one of the other batch, and perhaps one beyond the quota
        await made(served, "sk-b")
        assert (await alice.batches.retrieve(batch.id)).status == "in_progress"
        quota = served.app.state.batches.runner._keys.quota_of(key_id("sk-a"))
        assert quota.usage.pages in (3, 4)
        quota.usage.day -= 1
        done = await served.ended(batch, api=alice)
        assert done.request_counts.completed == 5
