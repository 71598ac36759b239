"""The database tables of files, batches and answers, and the thread that uses the database.

This uses SQLAlchemy Core without its asyncio extension. Statements take milliseconds, and a thread works with every
driver.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ocr_server.batches import private
from ocr_server.batches.migrations import SchemaTooNew, migrate
from ocr_server.errors import Unavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

BUSY_SECONDS = 30
"""How long SQLite waits for a lock that another process holds."""
RETRY_SECONDS = 5.0
"""`Retry-After` while the database is unavailable."""

_Serial = BigInteger().with_variant(Integer, "sqlite")
_metadata = MetaData()

files = Table(
    "files",
    _metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("client", Text, nullable=False),
    Column("state", String(16), nullable=False),  # uploading, processed, deleting
    Column("kind", String(16), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("files_of_client", "client", "seq"),
)

batches = Table(
    "batches",
    _metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("client", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("kind", String(16), nullable=False),  # of the input file
    Column("body", Text),  # of each request, if the input is a PDF or zip
    Column("metadata", JSON),
    Column("errors", JSON),
    Column("output_seconds", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("prompt_tokens", BigInteger, nullable=False, default=0),
    Column("completion_tokens", BigInteger, nullable=False, default=0),
    Column("answer_bytes", BigInteger, nullable=False, default=0),
    Column("lease_holder", String(64)),
    Column("lease_until", Float, nullable=False, default=0.0),
    Index("batches_of_client", "client", "seq"),
    Index("batches_by_status", "status"),
)

answers = Table(
    "batch_answers",
    _metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("succeeded", Boolean, nullable=False),
    Column("text", Text, nullable=False),  # the line in the output or error file
)


deliveries = Table(
    "batch_deliveries",
    _metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),  # 0: the input file as a whole
    Column("holder", String(64), primary_key=True),
)
"""Requests that a server has begun and that have no answer yet. Rows of servers that no longer run are their deaths."""

clock = Table(
    "clock",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seen", Float, nullable=False),  # Unix time
)
"""The time at which a server last ran: at most one row."""

secrets = Table(
    "secrets",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Keys that all servers with this database share, such as the one that signs URLs."""


class Database:
    """Runs functions in a thread, one after another, each with a connection and in a transaction."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = None
        self._thread = ThreadPoolExecutor(1, "database")
        self._trouble = ""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction, commit, and return its result.

        Raises:
            Unavailable: The database cannot be reached or opened. The log has the reason.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        try:
            if self._engine is None:
                self._engine = _opened(self._url)
            with self._engine.begin() as connection:
                result = work(connection)
        except (DBAPIError, ArgumentError, NoSuchModuleError, ModuleNotFoundError, SchemaTooNew, OSError) as error:
            trouble = str(error.orig) if isinstance(error, DBAPIError) else str(error)
            if trouble != self._trouble:  # log it once, not at every attempt
                logger.error("the database of files and batches is unavailable: %s", trouble)
            self._trouble = trouble
            raise Unavailable(
                "The database of files and batches is unavailable. Try again later.",
                code="database_unavailable",
                retry_after=RETRY_SECONDS,
            ) from error
        self._trouble = ""
        return result

    async def close(self) -> None:
        """Close the database when the current functions have finished."""

        def close() -> None:
            if self._engine is not None:
                self._engine.dispose()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)


def _opened(address: str) -> Engine:
    """Connect to the database, and create or migrate its tables."""
    url = make_url(address)
    if url.get_backend_name() == "sqlite":
        if url.database and not url.database.startswith((":", "file:")):
            path = Path(url.database)
            private.make_folder(path.parent, re.compile(rf"{re.escape(path.name)}(-wal|-shm|-journal)?|files"))
            path.touch(private.FILE)  # SQLite gives its log files the mode of the database
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True)
    with engine.begin() as connection:
        migrate(connection, _metadata)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Use a write-ahead log, and make every commit durable when it returns."""
    connection.isolation_level = None  # otherwise the driver begins transactions implicitly
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    """Begin as a writer: a transaction that becomes a writer later fails at once if there is another writer."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
