"""Leases of batches. Only the server that holds the lease of a batch can write its answers and end it."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, select, update

from ocr_server.batches.database import Database, answers, batches
from ocr_server.batches.files import Files, Quota

OPEN = ("validating", "in_progress")
"""States of a batch whose requests can still be processed."""
CLOSING = ("finalizing", "cancelling")
"""States of a batch whose files are still to be written."""
ANSWERS_AT_ONCE = 200
"""Maximum number of answers that are read from the database at once."""


class LostLease(Exception):
    """Another server has taken over the batch."""


class BatchAnswer(NamedTuple):
    """The answer to one request of a batch, or its error."""

    line: int
    """Number of the request in the input, counted from 1."""
    succeeded: bool
    text: str
    """The line in the output or error file."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LeaseState(NamedTuple):
    """The current state of a batch whose lease is held."""

    status: str
    storage_full: bool
    """Whether the storage quota is exceeded."""


class WrittenFile(NamedTuple):
    """An output or error file that has been written to the storage."""

    file_id: str
    size: int
    """Size in bytes."""


class Leases:
    """The leases that this server holds. Create one object for each server.

    Leases expire by the clocks of the servers, which must agree to within a few seconds.
    """

    def __init__(self, database: Database, files: Files, quota: Quota, *, seconds: float) -> None:
        """Args:
        database: Has the batches and their answers.
        files: Gets the rows of the files that batches write.
        quota: Limits of the stored bytes.
        seconds: Duration of a lease.
        """
        self._database = database
        self._files = files
        self._quota = quota
        self._seconds = seconds
        self._holder = uuid.uuid4().hex

    async def claim(
        self, active: Mapping[str, str], *, endpoints: Collection[str], accept_open: bool
    ) -> RowMapping | None:
        """Take the lease of a batch that no server holds.

        Batches that only have to be closed come first. Then comes the oldest batch of the client with the fewest active
        batches.

        Args:
            active: The batches that this server processes: id → client.
            endpoints: The endpoints that this server has. Other batches are left to other servers.
            accept_open: Whether to take batches with requests that are still to be processed.

        Returns:
            The batch, or None if there is none to take.
        """
        return await self._database.run(lambda connection: self._claim(connection, active, endpoints, accept_open))

    def _claim(
        self, connection: Connection, active: Mapping[str, str], endpoints: Collection[str], accept_open: bool
    ) -> RowMapping | None:
        now, running = time.time(), Counter(active.values())
        free = (batches.c.lease_until < now) & batches.c.id.not_in(active) & batches.c.endpoint.in_(endpoints)
        closing = batches.c.status.in_(CLOSING) | (batches.c.status.in_(OPEN) & (batches.c.expires_at <= now))
        seq = connection.execute(select(func.min(batches.c.seq)).where(closing, free)).scalar()
        if seq is None and accept_open:
            waiting = connection.execute(
                select(batches.c.client, func.min(batches.c.seq))
                .where(batches.c.status.in_(OPEN), free)
                .group_by(batches.c.client)
            ).all()
            seq = min(((running[client], first) for client, first in waiting), default=(0, None))[1]
        if seq is None:
            return None
        taken = connection.execute(
            update(batches)
            .where(batches.c.seq == seq, free)
            .values(lease_holder=self._holder, lease_until=now + self._seconds)
        )
        if taken.rowcount != 1:
            return None
        return connection.execute(select(batches).where(batches.c.seq == seq)).mappings().one()

    async def renew(self, ids: Collection[str]) -> dict[str, LeaseState]:
        """Renew leases, and return the state of each batch of `ids` whose lease is still held."""

        def renew(connection: Connection) -> dict[str, LeaseState]:
            mine = batches.c.id.in_(ids) & (batches.c.lease_holder == self._holder)
            connection.execute(update(batches).where(mine).values(lease_until=time.time() + self._seconds))
            rows = connection.execute(select(batches.c.id, batches.c.status, batches.c.client).where(mine)).all()
            return {row.id: LeaseState(row.status, self._quota.exceeded(connection, row.client)) for row in rows}

        return await self._database.run(renew) if ids else {}

    async def release(self, batch_id: str) -> None:
        """Release the lease, so that another server can take the batch at once."""
        mine = self._mine(batch_id)
        await self._database.run(
            lambda connection: connection.execute(
                update(batches).where(mine).values(lease_holder=None, lease_until=0.0)
            )
        )

    async def begin(self, batch_id: str, total: int) -> None:
        """Mark a batch as in progress: its input is valid and has `total` requests. Raises LostLease."""
        await self._change(
            batch_id,
            batches.c.status == "validating",
            status="in_progress",
            in_progress_at=int(time.time()),
            total=total,
        )

    async def fail(self, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        """End a batch whose input is not valid. Raises LostLease."""
        await self._change(
            batch_id,
            batches.c.status == "validating",
            status="failed",
            failed_at=int(time.time()),
            errors=[dict(error) for error in errors],
        )

    async def close(self, batch_id: str) -> None:
        """Stop processing a batch; its files are written next. Raises LostLease."""
        await self._change(batch_id, batches.c.status.in_(OPEN), status="finalizing", finalizing_at=int(time.time()))

    async def get(self, batch_id: str) -> RowMapping:
        """Return the row of a batch. Raises LostLease."""

        def get(connection: Connection) -> RowMapping:
            row = connection.execute(select(batches).where(self._mine(batch_id))).mappings().first()
            if row is None:
                raise LostLease
            return row

        return await self._database.run(get)

    async def answered(self, batch_id: str) -> set[int]:
        """Return the lines of the requests that have been answered."""
        lines = select(answers.c.line).where(answers.c.batch_id == batch_id)
        return set(await self._database.run(lambda connection: connection.execute(lines).scalars().all()))

    async def record(self, batch_id: str, group: Sequence[BatchAnswer]) -> None:
        """Store and count answers, either all or none of them. Raises LostLease."""
        succeeded = sum(answer.succeeded for answer in group)
        counted = {
            "completed": batches.c.completed + succeeded,
            "failed": batches.c.failed + len(group) - succeeded,
            "prompt_tokens": batches.c.prompt_tokens + sum(answer.prompt_tokens for answer in group),
            "completion_tokens": batches.c.completion_tokens + sum(answer.completion_tokens for answer in group),
            "answer_bytes": batches.c.answer_bytes + sum(len(answer.text.encode()) for answer in group),
        }
        rows = [
            {"batch_id": batch_id, "line": answer.line, "succeeded": answer.succeeded, "text": answer.text}
            for answer in group
        ]

        def record(connection: Connection) -> None:
            if connection.execute(update(batches).where(self._mine(batch_id)).values(counted)).rowcount != 1:
                raise LostLease
            connection.execute(insert(answers), rows)

        await self._database.run(record)

    async def some_answers(self, batch_id: str, *, succeeded: bool, after: int) -> Sequence[tuple[int, str]]:
        """Return the lines and texts of the next answers after the line `after`, in order."""
        some = (
            select(answers.c.line, answers.c.text)
            .where(answers.c.batch_id == batch_id, answers.c.succeeded == succeeded, answers.c.line > after)
            .order_by(answers.c.line)
            .limit(ANSWERS_AT_ONCE)
        )
        rows = await self._database.run(lambda connection: connection.execute(some).all())
        return [(row.line, row.text) for row in rows]

    async def end(self, batch: RowMapping, status: str, written: Mapping[str, WrittenFile], *, unanswered: int) -> None:
        """End a batch whose files have been written, and delete its answers.

        Args:
            batch: The batch.
            status: Its final status.
            written: The files: `output` and `error`.
            unanswered: Number of requests that were not processed.

        Raises:
            LostLease: Another server has taken over the batch.
        """
        now = int(time.time())

        def end(connection: Connection) -> None:
            for kind, file in written.items():
                self._files.insert_output(connection, batch, file.file_id, kind, file.size, now)
            changed = connection.execute(
                update(batches)
                .where(self._mine(batch["id"]), batches.c.status.in_(CLOSING))
                .values(
                    {
                        "status": status,
                        f"{status}_at": now,
                        "failed": batches.c.failed + unanswered,
                        "answer_bytes": 0,
                        **{f"{kind}_file_id": file.file_id for kind, file in written.items()},
                    }
                )
            )
            if changed.rowcount != 1:
                raise LostLease
            connection.execute(delete(answers).where(answers.c.batch_id == batch["id"]))

        await self._database.run(end)

    async def _change(self, batch_id: str, if_: ColumnElement[bool], **values: Any) -> None:
        """Update a batch if `if_` holds. Nothing happens if its status has changed. Raises LostLease."""

        def change(connection: Connection) -> None:
            mine = self._mine(batch_id)
            if connection.execute(select(batches.c.id).where(mine)).first() is None:
                raise LostLease
            connection.execute(update(batches).where(mine, if_).values(**values))

        await self._database.run(change)

    def _mine(self, batch_id: str) -> ColumnElement[bool]:
        return (batches.c.id == batch_id) & (batches.c.lease_holder == self._holder)
