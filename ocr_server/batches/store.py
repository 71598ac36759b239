"""Batches as clients see them: made, listed, cancelled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from functools import partial

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from ocr_server.batches.database import Database, batches
from ocr_server.batches.files import DAY, ENDED, file_of
from ocr_server.batches.listing import Listing, is_id, list_rows
from ocr_server.errors import InvalidRequest, NotFound, TooMany

CANCELLABLE = ("validating", "in_progress")


class Store:
    def __init__(self, database: Database, *, most_of_client: int, days: int) -> None:
        """Args:
        most_of_client: batches of one client that have not ended.
        days: after which a batch that has ended is forgotten.
        """
        self._database = database
        self._most_of_client = most_of_client
        self._seconds = days * DAY

    async def create(
        self,
        client: str,
        *,
        endpoint: str,
        input_file_id: str,
        window: str,
        seconds: int,
        kind: str,
        body: str | None,
        metadata: Mapping[str, str] | None,
        output_seconds: int | None,
    ) -> RowMapping:
        """A batch that waits to be taken up.

        Args:
            window: as the client wrote it; `seconds` of it.
            kind: the input's.
            body: for a PDF or zip, that of each request.
            output_seconds: for which the files it leaves are kept.

        Raises:
            NotFound: the client has no such file.
            TooMany: it has too many batches.
        """
        now = int(time.time())
        batch_id = f"batch_{uuid.uuid4().hex}"
        row = {
            "id": batch_id,
            "client": client,
            "status": "validating",
            "endpoint": endpoint,
            "completion_window": window,
            "input_file_id": input_file_id,
            "kind": kind,
            "body": body,
            "metadata": None if metadata is None else dict(metadata),
            "output_seconds": output_seconds,
            "created_at": now,
            "expires_at": now + seconds,
        }

        def create(connection: Connection) -> RowMapping:
            file_of(connection, client, input_file_id)
            mine = select(func.count()).where(batches.c.client == client, batches.c.status.not_in(ENDED))
            if connection.execute(mine).scalar_one() >= self._most_of_client:
                raise TooMany(f"At most {self._most_of_client} batches of yours may be under way.")
            connection.execute(insert(batches).values(row))
            return batch_of(connection, client, batch_id)

        return await self._database.run(create)

    async def get(self, client: str, batch_id: str) -> RowMapping:
        """Raises NotFound."""
        return await self._database.run(lambda connection: batch_of(connection, client, batch_id))

    async def list(self, client: str, *, after: str | None, limit: int) -> Listing:
        """The newest first. Raises InvalidRequest: `after` is none of the client's batches."""
        known = [batches.c.client == client]
        return await self._database.run(partial(list_rows, table=batches, known=known, after=after, limit=limit))

    async def cancel(self, client: str, batch_id: str) -> RowMapping:
        """Have its requests stopped; its answers so far stay.

        Raises:
            NotFound: the client has no such batch.
            InvalidRequest: it has ended.
        """

        def cancel(connection: Connection) -> RowMapping:
            row = batch_of(connection, client, batch_id)
            if row["status"] in ENDED:
                raise InvalidRequest(
                    f"The batch has ended: it is {row['status']}.", param="batch_id", code="batch_ended"
                )
            connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.status.in_(CANCELLABLE))
                .values(status="cancelling", cancelling_at=int(time.time()))
            )
            return batch_of(connection, client, batch_id)

        return await self._database.run(cancel)

    async def sweep(self) -> None:
        """Forget the batches that ended long ago."""
        ended = func.coalesce(batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at)
        old = batches.c.status.in_(ENDED) & (ended < int(time.time()) - self._seconds)
        await self._database.run(lambda connection: connection.execute(delete(batches).where(old)))


def batch_of(connection: Connection, client: str, batch_id: str) -> RowMapping:
    """The client's batch. Raises NotFound."""
    own = select(batches).where(batches.c.id == batch_id, batches.c.client == client)
    row = connection.execute(own).mappings().first() if is_id(batch_id) else None
    if row is None:
        raise NotFound(f"There is no batch {batch_id[:64]!r}.", param="batch_id", code="batch_not_found")
    return row
