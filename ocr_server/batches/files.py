"""Files that clients upload, and files that batches write: rows in the database, and bytes in the storage.

A row is created before the bytes and deleted after them. If the server crashes, no bytes are left without a row.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete, func, insert, select, update

from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.database import Database, batches, files
from ocr_server.batches.listing import Listing, is_id, list_rows
from ocr_server.batches.storage import STORED, Storage
from ocr_server.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from ocr_server.observability import metrics

DAY = 86_400
ROW_BYTES = 4096
"""Size that is added to each file in the quota, so that many empty files count as well."""
UPLOAD_SECONDS = 300.0
"""Seconds for which a server sees an upload before it is deleted, since the server that stored it must have died."""
MAX_LIFETIME = 30 * DAY
"""Longest lifetime in seconds that a client can give to a file."""
MAX_SWEPT = 500
"""Maximum number of files that are deleted in one sweep."""
ENDED = ("completed", "failed", "expired", "cancelled")
"""Final states of a batch."""


@dataclass(frozen=True)
class Quota:
    """Limits of the stored bytes."""

    of_all: int
    """Of all clients together."""
    of_client: int
    """Of each client. 0 means no limit."""

    def exceeded(self, connection: Connection, client: str, more: int = 0) -> bool:
        """Return whether the limits would be exceeded if the client stored `more` bytes."""
        if stored_bytes(connection) + more > self.of_all:
            return True
        return bool(self.of_client) and stored_bytes(connection, client) + more > self.of_client


class Files:
    """The files of all clients."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        quota: Quota,
        *,
        days: int,
        clock: SteadyClock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        database: Has the rows of the files.
        storage: Has the bytes of the files.
        quota: Limits of the stored bytes.
        days: Days after which a file expires if its upload does not say otherwise.
        clock: The time by which files expire.
        monotonic: Returns a time in seconds that never jumps.
        """
        self._database = database
        self.storage = storage
        self._quota = quota
        self._seconds = days * DAY
        self._clock = clock
        self._monotonic = monotonic
        self._uploads: dict[str, float] = {}

    async def upload(
        self,
        client: str,
        chunks: Iterable[bytes],
        *,
        filename: str,
        purpose: str = "batch",
        kind: str,
        size: int,
        seconds: int | None,
    ) -> RowMapping:
        """Store a file of a client, and return its row.

        Args:
            client: Label of the client.
            chunks: The content.
            filename: Name of the file, for display.
            purpose: What the client says that the file is for.
            kind: jsonl, pdf or zip; jsonl for everything else as well.
            size: Size of the content in bytes.
            seconds: Seconds after which the file expires. None for the default.

        Raises:
            TooLarge: The quota would be exceeded.
            Unavailable: The database or the storage is unavailable.
        """
        now = int(time.time())
        file_id = f"file-{uuid.uuid4().hex}"
        row = self._row(file_id, client, purpose, filename, kind, now, seconds) | {"state": "uploading", "bytes": size}

        def reserve(connection: Connection) -> None:
            if self._quota.exceeded(connection, client, size + ROW_BYTES):
                metrics.FILE_UPLOADS.labels(outcome="refused").inc()
                raise TooLarge(
                    "The storage quota is exceeded. Delete some files.",
                    param="file",
                    code="storage_full",
                )
            connection.execute(insert(files).values(row))

        await self._database.run(reserve)
        try:
            await self.storage.run(self.storage.write, file_id, chunks)
        except BaseException:
            with suppress(Unavailable):  # it is deleted later
                await self._remove([file_id])
            raise

        def finish(connection: Connection) -> RowMapping:
            mine = (files.c.id == file_id) & (files.c.state == "uploading")
            if connection.execute(update(files).where(mine).values(state="processed")).rowcount != 1:
                raise Unavailable("The file could not be stored in time. Try again later.", code="storage_unavailable")
            return connection.execute(select(files).where(files.c.id == file_id)).mappings().one()

        try:
            stored = await self._database.run(finish)
        except Unavailable:
            with suppress(Unavailable):
                await self._remove([file_id])
            raise
        metrics.FILE_UPLOADS.labels(outcome="stored").inc()
        return stored

    def insert_output(
        self, connection: Connection, batch: RowMapping, file_id: str, kind: str, size: int, now: int
    ) -> None:
        """Insert the row of a file that a batch has written, in the transaction that ends the batch."""
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

    async def get(self, client: str | None, file_id: str) -> RowMapping:
        """Return the row of a client's file, or of any file if `client` is None. Raises NotFound."""
        return await self._database.run(lambda connection: file_of(connection, client, file_id, self._clock.now()))

    async def list(
        self,
        client: str,
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        conditions: Sequence[ColumnElement[bool]] = (),
        offset: int = 0,
        with_total: bool = False,
    ) -> Listing:
        """Return the files of a client. Arguments as for `list_rows`, with further `conditions` on the files.

        Raises:
            InvalidRequest: The client has no file `after`.
        """
        known = [files.c.client == client]
        shown = [files.c.state == "processed", files.c.expires_at > self._clock.now(), *conditions]
        return await self._database.run(
            partial(
                list_rows,
                table=files,
                known=known,
                shown=shown,
                after=after,
                limit=limit,
                newest_first=newest_first,
                offset=offset,
                with_total=with_total,
            )
        )

    async def delete(self, client: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotFound: The client has no such file.
            InvalidRequest: The file is the input of a batch that has not ended.
        """

        def mark(connection: Connection) -> None:
            file_of(connection, client, file_id, self._clock.now())
            if batch := connection.execute(
                select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.not_in(ENDED)).limit(1)
            ).scalar():
                raise InvalidRequest(
                    f"The file is the input of {batch}, which has not ended. Cancel that batch first.",
                    param="file_id",
                    code="file_in_use",
                )
            connection.execute(update(files).where(files.c.id == file_id).values(state="deleting"))

        await self._database.run(mark)
        await self._remove([file_id])

    async def sweep(self) -> None:
        """Delete expired files, unfinished uploads, and files whose deletion a crash interrupted."""
        now, monotonic = self._clock.now(), self._monotonic()
        needed = select(batches.c.input_file_id).where(batches.c.status.not_in(ENDED))
        uploading = select(files.c.id).where(files.c.state == "uploading")

        def mark(connection: Connection) -> Sequence[str]:
            found = connection.execute(uploading).scalars().all()
            self._uploads = {file_id: self._uploads.get(file_id, monotonic) for file_id in found}
            died = [file_id for file_id, since in self._uploads.items() if monotonic - since >= UPLOAD_SECONDS]
            stale = (files.c.state == "uploading") & files.c.id.in_(died)
            over = (files.c.state == "processed") & (files.c.expires_at <= now) & files.c.id.not_in(needed)
            connection.execute(update(files).where(stale | over).values(state="deleting"))
            return (
                connection.execute(select(files.c.id).where(files.c.state == "deleting").limit(MAX_SWEPT))
                .scalars()
                .all()
            )

        await self._remove(await self._database.run(mark))
        await self._database.run(self._measure)

    def _measure(self, connection: Connection) -> None:
        """Update the metrics of what is stored."""
        numbers = select(files.c.purpose, func.count()).group_by(files.c.purpose)
        metrics.stored({row[0]: row[1] for row in connection.execute(numbers).all()}, stored_bytes(connection))
        metrics.STORED_BYTES_LIMIT.set(self._quota.of_all)

    async def sweep_orphans(self) -> None:
        """Delete stored bytes without a row, which are left when a batch was given up or a database was lost.

        They are deleted when any file would have expired: the storage may have been written with another database.
        """
        before = self._clock.now() - max(self._seconds, MAX_LIFETIME)
        unended = select(batches.c.id).where(batches.c.status.not_in(ENDED))
        stored = await self.storage.run(self.storage.modified)
        old = [name for name, at in stored.items() if at < before and STORED.fullmatch(name)]
        for start in range(0, len(old), MAX_SWEPT):
            some = old[start : start + MAX_SWEPT]
            with_row = select(files.c.id).where(files.c.id.in_(some))
            known = set(await self._database.run(partial(_column, with_row)))
            in_progress = set(await self._database.run(partial(_column, unended)))
            for name in some:
                if name not in known and f"batch_{name.rsplit('-', 1)[-1]}" not in in_progress:
                    await self.storage.run(self.storage.remove, name)

    async def _remove(self, ids: Sequence[str]) -> None:
        for file_id in ids:
            await self.storage.run(self.storage.remove, file_id)
        if ids:
            await self._database.run(lambda connection: connection.execute(delete(files).where(files.c.id.in_(ids))))


def _column(statement: Select[Any], connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute(statement).all()]


def file_of(connection: Connection, client: str | None, file_id: str, now: float) -> RowMapping:
    """Return the row of a client's file, or of any file if `client` is None, that has not expired at the time `now`.

    Raises:
        NotFound: There is no such file.
    """
    visible = (files.c.state == "processed") & (files.c.expires_at > now)
    own = select(files).where(files.c.id == file_id, visible)
    if client is not None:
        own = own.where(files.c.client == client)
    row = connection.execute(own).mappings().first() if is_id(file_id) else None
    if row is None:
        raise NotFound(f"The file {file_id[:64]!r} does not exist.", param="file_id", code="file_not_found")
    return row


def stored_bytes(connection: Connection, client: str | None = None) -> int:
    """Return the stored bytes of a client, or of all: of files, and of the answers of batches that have not ended."""
    of_files = select(func.coalesce(func.sum(files.c.bytes + ROW_BYTES), 0))
    of_answers = select(func.coalesce(func.sum(batches.c.answer_bytes), 0))
    if client is not None:
        of_files = of_files.where(files.c.client == client)
        of_answers = of_answers.where(batches.c.client == client)
    return int(connection.execute(of_files).scalar_one()) + int(connection.execute(of_answers).scalar_one())
