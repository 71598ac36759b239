"""Batches from the view of clients, who create, list and cancel them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from functools import partial

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.database import Database, batches, files
from ocr_server.batches.files import DAY, ENDED, file_of
from ocr_server.batches.listing import Listing, is_id, list_rows
from ocr_server.errors import InvalidRequest, NotFound, TooMany

CANCELLABLE = ("validating", "in_progress")
"""States in which a batch can be cancelled."""
LABEL = "label:"
"""Prefix of clients of files and batches that belong to a label. No owner of a key has it."""


class Store:
    """The batches of all clients."""

    def __init__(self, database: Database, *, max_of_client: int, days: int, clock: SteadyClock) -> None:
        """Args:
        database: Has the batches.
        max_of_client: Maximum number of batches of a client that have not ended.
        days: Days after which a batch that has ended is deleted.
        clock: The time by which batches are deleted and files expire.
        """
        self._database = database
        self._max_of_client = max_of_client
        self._seconds = days * DAY
        self._clock = clock

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
        """Create a batch, and return its row.

        Args:
            client: Label of the client.
            endpoint: Path of the endpoint of all requests.
            input_file_id: Id of the input file.
            window: Completion window as the client wrote it.
            seconds: Completion window in seconds.
            kind: Kind of the input file: jsonl, pdf or zip.
            body: Body of each request, if the input is a PDF or zip.
            metadata: Metadata of the client.
            output_seconds: Seconds after which the output files expire. None for the default.

        Raises:
            NotFound: The client has no such file.
            TooMany: The client has too many batches.
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
            file_of(connection, client, input_file_id, self._clock.now())
            mine = select(func.count()).where(batches.c.client == client, batches.c.status.not_in(ENDED))
            if connection.execute(mine).scalar_one() >= self._max_of_client:
                raise TooMany(f"You have {self._max_of_client} batches that have not ended, which is the limit.")
            connection.execute(insert(batches).values(row))
            return batch_of(connection, client, batch_id)

        return await self._database.run(create)

    async def get(self, client: str, batch_id: str) -> RowMapping:
        """Return the row of a batch. Raises NotFound."""
        return await self._database.run(lambda connection: batch_of(connection, client, batch_id))

    async def list(self, client: str, *, after: str | None, limit: int) -> Listing:
        """Return the batches of a client, newest first. Arguments as for `list_rows`.

        Raises:
            InvalidRequest: The client has no batch `after`.
        """
        known = [batches.c.client == client]
        return await self._database.run(partial(list_rows, table=batches, known=known, after=after, limit=limit))

    async def cancel(self, client: str, batch_id: str) -> RowMapping:
        """Cancel a batch, and return its row. Answers that it already has are kept.

        Raises:
            NotFound: The client has no such batch.
            InvalidRequest: The batch has ended.
        """

        def cancel(connection: Connection) -> RowMapping:
            row = batch_of(connection, client, batch_id)
            if row["status"] in ENDED:
                raise InvalidRequest(
                    f"The batch has already ended with the status {row['status']}.",
                    param="batch_id",
                    code="batch_ended",
                )
            connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.status.in_(CANCELLABLE))
                .values(status="cancelling", cancelling_at=int(time.time()))
            )
            return batch_of(connection, client, batch_id)

        return await self._database.run(cancel)

    async def adopt(self, owners: Mapping[str, str]) -> None:
        """Give files and batches that belonged to a label, in version 2 of the schema, to the key with that label.

        Args:
            owners: Label → owner.
        """

        def adopt(connection: Connection) -> None:
            for table in (files, batches):
                left = select(table.c.client).where(table.c.client.startswith(LABEL)).distinct()
                for client in connection.execute(left).scalars().all():
                    if (owner := owners.get(client.removeprefix(LABEL))) is not None:
                        connection.execute(update(table).where(table.c.client == client).values(client=owner))

        await self._database.run(adopt)

    async def sweep(self) -> None:
        """Delete batches that ended long ago."""
        ended = func.coalesce(batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at)
        old = batches.c.status.in_(ENDED) & (ended < self._clock.now() - self._seconds)
        await self._database.run(lambda connection: connection.execute(delete(batches).where(old)))


def batch_of(connection: Connection, client: str, batch_id: str) -> RowMapping:
    """Return the row of a client's batch. Raises NotFound."""
    own = select(batches).where(batches.c.id == batch_id, batches.c.client == client)
    row = connection.execute(own).mappings().first() if is_id(batch_id) else None
    if row is None:
        raise NotFound(f"The batch {batch_id[:64]!r} does not exist.", param="batch_id", code="batch_not_found")
    return row
