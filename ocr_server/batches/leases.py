"""Leases of batches. Only the server that holds the lease of a batch can write its answers and end it.

Before a server begins a request, it writes a row that says so (`deliveries`), which it deletes with the answer, or when
it stops or loses the lease. The rows of other servers that are left for a request are therefore those of servers that
died while they processed it.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, or_, select, update

from ocr_server.batches.clock import SteadyClock
from ocr_server.batches.database import Database, answers, batches, deliveries
from ocr_server.batches.files import Files, Quota

OPEN = ("validating", "in_progress")
"""States of a batch whose requests can still be processed."""
CLOSING = ("finalizing", "cancelling")
"""States of a batch whose files are still to be written."""
INPUT = 0
"""The line that stands for the input file as a whole: it is being checked, opened or read."""
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
    has_expired: bool
    """Whether the completion window has ended."""


class WrittenFile(NamedTuple):
    """An output or error file that has been written to the storage."""

    file_id: str
    size: int
    """Size in bytes."""


class _Lease(NamedTuple):
    """A lease of another server as it was renewed at some time."""

    batch_id: str
    holder: str
    until: float


class Leases:
    """The leases that this server holds. Create one object for each server.

    A lease has expired if another server has seen for its whole duration, by a clock that never jumps, that it was not
    renewed. The clocks of the servers need not agree.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        quota: Quota,
        *,
        seconds: float,
        clock: SteadyClock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        database: Has the batches and their answers.
        files: Gets the rows of the files that batches write.
        quota: Limits of the stored bytes.
        seconds: Duration of a lease.
        clock: The time by which batches expire.
        monotonic: Returns a time in seconds that never jumps.
        """
        self._database = database
        self._files = files
        self._quota = quota
        self._seconds = seconds
        self._clock = clock
        self._monotonic = monotonic
        self._holder = uuid.uuid4().hex
        self._watched: dict[_Lease, float] = {}
        self._unreleased = set[str]()

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
        running = Counter(active.values())
        free = self._is_free(connection) & batches.c.id.not_in(active) & batches.c.endpoint.in_(endpoints)
        is_over = batches.c.status.in_(OPEN) & (batches.c.expires_at <= self._clock.now())
        closing = batches.c.status.in_(CLOSING) | is_over
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
            .values(lease_holder=self._holder, lease_until=time.time() + self._seconds)
        )
        if taken.rowcount != 1:
            return None
        batch = connection.execute(select(batches).where(batches.c.seq == seq)).mappings().one()
        self._begin(connection, batch["id"], [INPUT])
        return batch

    def _is_free(self, connection: Connection) -> ColumnElement[bool]:
        """Return the condition that no server holds the lease of a batch, or that it has expired."""
        others = select(batches.c.id, batches.c.lease_holder, batches.c.lease_until).where(
            batches.c.status.in_((*OPEN, *CLOSING)), batches.c.lease_holder != self._holder
        )
        now = self._monotonic()
        found = [_Lease(*row) for row in connection.execute(others).all()]
        self._watched = {lease: self._watched.get(lease, now) for lease in found}
        expired = [lease for lease, since in self._watched.items() if now - since >= self._seconds]
        return or_(
            batches.c.lease_holder.is_(None),
            batches.c.lease_holder == self._holder,  # it could not be released
            *(
                (batches.c.id == lease.batch_id)
                & (batches.c.lease_holder == lease.holder)
                & (batches.c.lease_until == lease.until)
                for lease in expired
            ),
        )

    def _begin(self, connection: Connection, batch_id: str, lines: Collection[int]) -> None:
        """Note that this server is about to process some requests."""
        if lines:
            mine = (deliveries.c.batch_id == batch_id) & (deliveries.c.holder == self._holder)
            connection.execute(delete(deliveries).where(mine, deliveries.c.line.in_(lines)))
            rows = [{"batch_id": batch_id, "line": line, "holder": self._holder} for line in lines]
            connection.execute(insert(deliveries), rows)

    async def deaths(self, batch_id: str) -> dict[int, int]:
        """Return how many servers died while they processed a request: line → number. `INPUT` is the input file."""
        counted = (
            select(deliveries.c.line, func.count())
            .where(deliveries.c.batch_id == batch_id, deliveries.c.holder != self._holder)
            .group_by(deliveries.c.line)
        )
        rows = await self._database.run(lambda connection: connection.execute(counted).all())
        return {row[0]: row[1] for row in rows}

    async def renew(self, ids: Collection[str]) -> dict[str, LeaseState]:
        """Renew leases, and return the state of each batch of `ids` whose lease is still held."""

        def renew(connection: Connection) -> dict[str, LeaseState]:
            for batch_id in self._unreleased:
                self._release(connection, batch_id)
            mine = batches.c.id.in_(ids) & (batches.c.lease_holder == self._holder)
            connection.execute(update(batches).where(mine).values(lease_until=time.time() + self._seconds))
            now, rows = self._clock.now(), connection.execute(select(batches).where(mine)).all()
            return {
                row.id: LeaseState(row.status, self._quota.exceeded(connection, row.client), row.expires_at <= now)
                for row in rows
            }

        if not ids and not self._unreleased:
            return {}
        held = await self._database.run(renew)
        self._unreleased.clear()
        return held

    async def release(self, batch_id: str) -> None:
        """Release the lease, so that another server can take the batch at once.

        If the database is unavailable, the lease is released when leases are next renewed.
        """
        self._unreleased.add(batch_id)
        await self._database.run(lambda connection: self._release(connection, batch_id))
        self._unreleased.discard(batch_id)

    def _release(self, connection: Connection, batch_id: str) -> None:
        mine = (deliveries.c.batch_id == batch_id) & (deliveries.c.holder == self._holder)
        connection.execute(delete(deliveries).where(mine))
        connection.execute(update(batches).where(self._mine(batch_id)).values(lease_holder=None, lease_until=0.0))

    async def begin(self, batch_id: str, total: int) -> None:
        """Mark a batch as in progress: its input is valid and has `total` requests. Raises LostLease."""
        values = {"status": "in_progress", "in_progress_at": int(time.time()), "total": total}
        is_new = batches.c.status == "validating"
        await self._database.run(lambda connection: self._change(connection, batch_id, is_new, values))

    async def fail(self, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        """End a batch whose input is not valid. Raises LostLease."""
        values = {"status": "failed", "failed_at": int(time.time()), "errors": [dict(error) for error in errors]}
        is_new = batches.c.status == "validating"

        def fail(connection: Connection) -> None:
            self._change(connection, batch_id, is_new, values)
            connection.execute(delete(deliveries).where(deliveries.c.batch_id == batch_id))

        await self._database.run(fail)

    async def close(self, batch_id: str) -> None:
        """Stop processing a batch; its files are written next. Raises LostLease."""

        def close(connection: Connection) -> None:
            self._change(
                connection,
                batch_id,
                batches.c.status.in_(OPEN),
                {"status": "finalizing", "finalizing_at": int(time.time())},
            )
            self._begin(connection, batch_id, [INPUT])

        await self._database.run(close)

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

    async def record(self, batch_id: str, *, begun: Collection[int] = (), group: Sequence[BatchAnswer] = ()) -> None:
        """Note which requests are begun, and store and count answers: either all of it or nothing.

        Args:
            batch_id: Id of the batch.
            begun: Lines of the requests that this server is about to process. Its input has been opened by then.
            group: Answers.

        Raises:
            LostLease: Another server has taken over the batch.
        """
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
            if rows:
                connection.execute(insert(answers), rows)
            over = [answer.line for answer in group] + ([INPUT] if begun else [])
            connection.execute(delete(deliveries).where(deliveries.c.batch_id == batch_id, deliveries.c.line.in_(over)))
            self._begin(connection, batch_id, begun)

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

    async def end(
        self,
        batch: RowMapping,
        status: str,
        written: Mapping[str, WrittenFile],
        *,
        unanswered: int,
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """End a batch whose files have been written, and delete its answers.

        Args:
            batch: The batch.
            status: Its final status.
            written: The files: `output` and `error`.
            unanswered: Number of requests that were not processed.
            errors: Why the batch failed, if it did.

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
                        "errors": errors and [dict(error) for error in errors],
                        **{f"{kind}_file_id": file.file_id for kind, file in written.items()},
                    }
                )
            )
            if changed.rowcount != 1:
                raise LostLease
            connection.execute(delete(answers).where(answers.c.batch_id == batch["id"]))
            connection.execute(delete(deliveries).where(deliveries.c.batch_id == batch["id"]))

        await self._database.run(end)

    def _change(
        self, connection: Connection, batch_id: str, if_: ColumnElement[bool], values: Mapping[str, Any]
    ) -> None:
        """Update a batch if `if_` holds. Nothing happens if its status has changed. Raises LostLease."""
        mine = self._mine(batch_id)
        if connection.execute(select(batches.c.id).where(mine)).first() is None:
            raise LostLease
        connection.execute(update(batches).where(mine, if_).values(values))

    def _mine(self, batch_id: str) -> ColumnElement[bool]:
        return (batches.c.id == batch_id) & (batches.c.lease_holder == self._holder)
