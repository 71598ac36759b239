"""Files that clients upload, and those that batches leave: rows that say whose they are, and bytes in the storage.

A row comes before its bytes and goes after them, so that whatever ends the server leaves no bytes that nobody knows of.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from ocr_server.batches.database import Database, batches, files
from ocr_server.batches.listing import Listing, is_id, list_rows
from ocr_server.batches.storage import Storage
from ocr_server.errors import InvalidRequest, NotFound, TooLarge

DAY = 86_400
ROW_BYTES = 4096
"""What a file counts for beside its bytes: a million empty ones are no small thing either."""
UPLOAD_SECONDS = DAY
"""After which a file whose upload never ended is deleted."""
SWEPT = 500
ENDED = ("completed", "failed", "expired", "cancelled")
"""States of a batch that is over."""


@dataclass(frozen=True)
class Quota:
    """Bytes that may be stored."""

    of_all: int
    of_client: int
    """0 for no such bound."""

    def exceeded(self, connection: Connection, client: str, more: int = 0) -> bool:
        """Whether `more` bytes of `client` are too many."""
        if stored_bytes(connection) + more > self.of_all:
            return True
        return bool(self.of_client) and stored_bytes(connection, client) + more > self.of_client


class Files:
    def __init__(self, database: Database, storage: Storage, quota: Quota, *, days: int) -> None:
        """Args:
        days: for which files are kept that don't say it themselves.
        """
        self._database = database
        self.storage = storage
        self._quota = quota
        self._seconds = days * DAY

    async def upload(
        self,
        client: str,
        chunks: Iterable[bytes],
        *,
        filename: str,
        kind: str,
        size: int,
        seconds: int | None,
    ) -> RowMapping:
        """Keep what a client sends.

        Args:
            kind: what it is: jsonl, pdf or zip.
            size: bytes that `chunks` have.
            seconds: until it expires.

        Raises:
            TooLarge: more is stored than may be.
            Unavailable: the database or the storage can't be used.
        """
        now = int(time.time())
        file_id = f"file-{uuid.uuid4().hex}"
        row = self._row(file_id, client, "batch", filename, kind, now, seconds) | {"state": "uploading", "bytes": size}

        def reserve(connection: Connection) -> None:
            if self._quota.exceeded(connection, client, size + ROW_BYTES):
                raise TooLarge(
                    "The server stores as many bytes of files as it may; delete some.",
                    param="file",
                    code="storage_full",
                )
            connection.execute(insert(files).values(row))

        await self._database.run(reserve)
        try:
            await asyncio.to_thread(self.storage.write, file_id, chunks)
        except BaseException:
            await self._remove([file_id])
            raise

        def finish(connection: Connection) -> RowMapping:
            connection.execute(update(files).where(files.c.id == file_id).values(state="processed"))
            return connection.execute(select(files).where(files.c.id == file_id)).mappings().one()

        return await self._database.run(finish)

    def left_by_batch(
        self, connection: Connection, batch: RowMapping, file_id: str, kind: str, size: int, now: int
    ) -> None:
        """The row of a file that a batch has written; with its end, in one transaction."""
        name = f"{batch['id']}_{kind}.jsonl"
        row = self._row(file_id, batch["client"], "batch_output", name, "jsonl", now, batch["output_seconds"])
        connection.execute(insert(files).values(row | {"state": "processed", "bytes": size}))

    def _row(
        self, file_id: str, client: str, purpose: str, filename: str, kind: str, now: int, seconds: int | None
    ) -> dict[str, Any]:
        return {
            "id": file_id,
            "client": client,
            "kind": kind,
            "purpose": purpose,
            "filename": filename,
            "created_at": now,
            "expires_at": now + (self._seconds if seconds is None else seconds),
        }

    async def get(self, client: str, file_id: str) -> RowMapping:
        """Raises NotFound."""
        return await self._database.run(lambda connection: file_of(connection, client, file_id))

    async def list(
        self, client: str, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> Listing:
        """Raises InvalidRequest: `after` is none of the client's files."""
        known = [files.c.client == client]
        shown = [files.c.state == "processed", files.c.expires_at > time.time()]
        if purpose is not None:
            shown.append(files.c.purpose == purpose)
        return await self._database.run(
            partial(
                list_rows, table=files, known=known, shown=shown, after=after, limit=limit, newest_first=newest_first
            )
        )

    async def delete(self, client: str, file_id: str) -> None:
        """Raises NotFound; InvalidRequest: a batch that has not ended needs it."""

        def mark(connection: Connection) -> None:
            file_of(connection, client, file_id)
            if batch := connection.execute(
                select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.not_in(ENDED)).limit(1)
            ).scalar():
                raise InvalidRequest(
                    f"{batch} has not ended and needs this file; cancel it first.", param="file_id", code="file_in_use"
                )
            connection.execute(update(files).where(files.c.id == file_id).values(state="deleting"))

        await self._database.run(mark)
        await self._remove([file_id])

    async def sweep(self) -> None:
        """Delete what has expired, and what a server that died has left half done."""
        now = time.time()
        needed = select(batches.c.input_file_id).where(batches.c.status.not_in(ENDED))

        def mark(connection: Connection) -> Sequence[str]:
            stale = (files.c.state == "uploading") & (files.c.created_at < now - UPLOAD_SECONDS)
            over = (files.c.state == "processed") & (files.c.expires_at <= now) & files.c.id.not_in(needed)
            connection.execute(update(files).where(stale | over).values(state="deleting"))
            return (
                connection.execute(select(files.c.id).where(files.c.state == "deleting").limit(SWEPT)).scalars().all()
            )

        await self._remove(await self._database.run(mark))

    async def _remove(self, ids: Sequence[str]) -> None:
        for file_id in ids:
            await asyncio.to_thread(self.storage.remove, file_id)
        if ids:
            await self._database.run(lambda connection: connection.execute(delete(files).where(files.c.id.in_(ids))))


def file_of(connection: Connection, client: str, file_id: str) -> RowMapping:
    """The client's file. Raises NotFound."""
    visible = (files.c.state == "processed") & (files.c.expires_at > time.time())
    own = select(files).where(files.c.id == file_id, files.c.client == client, visible)
    row = connection.execute(own).mappings().first() if is_id(file_id) else None
    if row is None:
        raise NotFound(f"There is no file {file_id[:64]!r}.", param="file_id", code="file_not_found")
    return row


def stored_bytes(connection: Connection, client: str | None = None) -> int:
    """Of all files, or the client's, and of the answers of batches that have not ended."""
    of_files = select(func.coalesce(func.sum(files.c.bytes + ROW_BYTES), 0))
    of_answers = select(func.coalesce(func.sum(batches.c.answer_bytes), 0))
    if client is not None:
        of_files = of_files.where(files.c.client == client)
        of_answers = of_answers.where(batches.c.client == client)
    return int(connection.execute(of_files).scalar_one()) + int(connection.execute(of_answers).scalar_one())
