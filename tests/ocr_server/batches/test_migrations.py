"""Databases of earlier versions of the server are brought to the latest schema."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import create_engine, inspect

from ocr_server.batches.database import Database
from ocr_server.batches.migrations import LATEST, MIGRATIONS
from ocr_server.errors import Unavailable
from tests.ocr_server.batches.conftest import Serve, refusal, request

VERSION_1 = """
CREATE TABLE files (
    seq INTEGER NOT NULL, id VARCHAR(64) NOT NULL, client TEXT NOT NULL, state VARCHAR(16) NOT NULL,
    kind VARCHAR(16) NOT NULL, purpose VARCHAR(32) NOT NULL, filename TEXT NOT NULL, bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, PRIMARY KEY (seq), UNIQUE (id)
);
CREATE INDEX files_of_client ON files (client, seq);
CREATE TABLE batches (
    seq INTEGER NOT NULL, id VARCHAR(64) NOT NULL, client TEXT NOT NULL, status VARCHAR(16) NOT NULL,
    endpoint VARCHAR(64) NOT NULL, completion_window VARCHAR(16) NOT NULL, input_file_id VARCHAR(64) NOT NULL,
    output_file_id VARCHAR(64), error_file_id VARCHAR(64), kind VARCHAR(16) NOT NULL, body TEXT, metadata JSON,
    errors JSON, output_seconds BIGINT, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, in_progress_at BIGINT,
    finalizing_at BIGINT, completed_at BIGINT, failed_at BIGINT, expired_at BIGINT, cancelling_at BIGINT,
    cancelled_at BIGINT, total INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL,
    prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL, answer_bytes BIGINT NOT NULL,
    lease_holder VARCHAR(64), lease_until FLOAT NOT NULL, PRIMARY KEY (seq), UNIQUE (id)
);
CREATE INDEX batches_of_client ON batches (client, seq);
CREATE INDEX batches_by_status ON batches (status);
CREATE TABLE batch_answers (
    batch_id VARCHAR(64) NOT NULL, line INTEGER NOT NULL, succeeded BOOLEAN NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (batch_id, line)
);
"""


def schema(path: Path) -> dict[str, Any]:
    """Return the columns, keys and indexes of all tables."""
    engine = create_engine(f"sqlite:///{path}")
    tables = inspect(engine)
    found = {
        name: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in tables.get_columns(name)},
            tables.get_pk_constraint(name)["constrained_columns"],
            sorted(str(index["name"]) for index in tables.get_indexes(name)),
        )
        for name in tables.get_table_names()
    }
    engine.dispose()
    return found


async def opened(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    try:
        await database.run(lambda connection: None)
    finally:
        await database.close()


def execute(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


async def test_a_migrated_database_is_like_a_new_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    execute(old, VERSION_1)
    for _ in range(2):
        await opened(old)
        await opened(new)
        assert schema(old) == schema(new)
    expected = {"files", "batches", "batch_answers", "batch_deliveries", "clock", "secrets", "schema_version"}
    assert schema(new).keys() == expected


async def test_a_database_of_version_1_keeps_its_files_and_batches(serve: Serve, tmp_path: Path) -> None:
    async with serve() as served:
        done = await served.ended(await served.batch([request("a")]))
    later = ("schema_version", "batch_deliveries", "clock", "secrets")
    execute(tmp_path / "batches.db", "; ".join(f"DROP TABLE {name}" for name in later))
    async with serve() as served:
        assert [batch.id async for batch in served.api.batches.list()] == [done.id]
        assert list(await served.lines(done.output_file_id)) == ["a"]
        assert (await served.ended(await served.batch([request("b")]))).status == "completed"


async def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "batches.db"
    execute(path, f"{VERSION_1}; CREATE TABLE clock (x INTEGER)")  # a table that the migration creates
    before = schema(path)
    assert len(MIGRATIONS[0]) > 1
    with pytest.raises(Unavailable):
        await opened(path)
    assert schema(path) == before


async def test_a_database_of_a_later_version_is_refused(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "batches.db"
    await opened(path)
    execute(path, "UPDATE schema_version SET version = 1000")
    async with serve() as served:
        with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as caught:
            await served.api.batches.list()
        assert refusal(caught.value)[::2] == (503, "database_unavailable")
        assert f"its schema has version 1000, and this server knows versions up to {LATEST}" in caplog.text
        assert "DATABASE_URL" in caplog.text
