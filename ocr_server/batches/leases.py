"""Batches as they are worked on: whoever holds a batch's lease, and nobody else, writes its answers and its end."""

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
CLOSING = ("finalizing", "cancelling")
ANSWERS_AT_ONCE = 200


class LostLease(Exception):
    """Another server has taken the batch over."""


class Answer(NamedTuple):
    """What became of one request of a batch."""

    line: int
    succeeded: bool
    text: str
    """Its line of the output or error file."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Held(NamedTuple):
    """What is to be known of a batch that is worked on."""

    status: str
    storage_full: bool


class Left(NamedTuple):
    """A file that a batch leaves."""

    file_id: str
    size: int


class Leases:
    """One for each server. Leases are compared by the servers' own clocks: let them agree to within seconds."""

    def __init__(self, database: Database, files: Files, quota: Quota, *, seconds: float) -> None:
        self._database = database
        self._files = files
        self._quota = quota
        self._seconds = seconds
        self._holder = uuid.uuid4().hex

    async def claim(self, own: Mapping[str, str], *, room: bool) -> RowMapping | None:
        """Take one that nobody holds: first those that are to be closed; then, if there is room, the oldest of the
        client that has fewest.

        Args:
            own: those that this server works on, and their clients.
        """
        return await self._database.run(lambda connection: self._claim(connection, own, room))

    def _claim(self, connection: Connection, own: Mapping[str, str], room: bool) -> RowMapping | None:
        now, running = time.time(), Counter(own.values())
        free = (batches.c.lease_until < now) & batches.c.id.not_in(own)
        closing = batches.c.status.in_(CLOSING) | (batches.c.status.in_(OPEN) & (batches.c.expires_at <= now))
        seq = connection.execute(select(func.min(batches.c.seq)).where(closing, free)).scalar()
        if seq is None and room:
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

    async def renew(self, ids: Collection[str]) -> dict[str, Held]:
        """Those of `ids` that are still held, which they are for another while."""

        def renew(connection: Connection) -> dict[str, Held]:
            mine = batches.c.id.in_(ids) & (batches.c.lease_holder == self._holder)
            connection.execute(update(batches).where(mine).values(lease_until=time.time() + self._seconds))
            rows = connection.execute(select(batches.c.id, batches.c.status, batches.c.client).where(mine)).all()
            return {row.id: Held(row.status, self._quota.exceeded(connection, row.client)) for row in rows}

        return await self._database.run(renew) if ids else {}

    async def release(self, batch_id: str) -> None:
        """Let others have it at once."""
        mine = self._mine(batch_id)
        await self._database.run(
            lambda connection: connection.execute(
                update(batches).where(mine).values(lease_holder=None, lease_until=0.0)
            )
        )

    async def begin(self, batch_id: str, total: int) -> None:
        """Its input is sound and has `total` requests."""
        await self._change(
            batch_id,
            batches.c.status == "validating",
            status="in_progress",
            in_progress_at=int(time.time()),
            total=total,
        )

    async def fail(self, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        """Its input is not sound: it ends."""
        await self._change(
            batch_id,
            batches.c.status == "validating",
            status="failed",
            failed_at=int(time.time()),
            errors=[dict(error) for error in errors],
        )

    async def close(self, batch_id: str) -> None:
        """Nothing more is answered; its files are written next."""
        await self._change(batch_id, batches.c.status.in_(OPEN), status="finalizing", finalizing_at=int(time.time()))

    async def get(self, batch_id: str) -> RowMapping:
        """Raises LostLease."""

        def get(connection: Connection) -> RowMapping:
            row = connection.execute(select(batches).where(self._mine(batch_id))).mappings().first()
            if row is None:
                raise LostLease
            return row

        return await self._database.run(get)

    async def answered(self, batch_id: str) -> set[int]:
        """The lines of the requests that have an answer."""
        lines = select(answers.c.line).where(answers.c.batch_id == batch_id)
        return set(await self._database.run(lambda connection: connection.execute(lines).scalars().all()))

    async def record(self, batch_id: str, group: Sequence[Answer]) -> None:
        """Keep answers, and count them, all or none of them. Raises LostLease."""
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
        """Line and text of some answers behind the line `after`, in order."""
        some = (
            select(answers.c.line, answers.c.text)
            .where(answers.c.batch_id == batch_id, answers.c.succeeded == succeeded, answers.c.line > after)
            .order_by(answers.c.line)
            .limit(ANSWERS_AT_ONCE)
        )
        rows = await self._database.run(lambda connection: connection.execute(some).all())
        return [(row.line, row.text) for row in rows]

    async def end(self, batch: RowMapping, status: str, left: Mapping[str, Left], *, unanswered: int) -> None:
        """The batch is over: its files are there, its answers are in them.

        Args:
            left: the files, by what they are: output, error.
            unanswered: requests that were never begun or finished.
        """
        now = int(time.time())

        def end(connection: Connection) -> None:
            for kind, file in left.items():
                self._files.left_by_batch(connection, batch, file.file_id, kind, file.size, now)
            changed = connection.execute(
                update(batches)
                .where(self._mine(batch["id"]), batches.c.status.in_(CLOSING))
                .values(
                    {
                        "status": status,
                        f"{status}_at": now,
                        "failed": batches.c.failed + unanswered,
                        "answer_bytes": 0,
                        **{f"{kind}_file_id": file.file_id for kind, file in left.items()},
                    }
                )
            )
            if changed.rowcount != 1:
                raise LostLease
            connection.execute(delete(answers).where(answers.c.batch_id == batch["id"]))

        await self._database.run(end)

    async def _change(self, batch_id: str, if_: ColumnElement[bool], **values: Any) -> None:
        """Raises LostLease; nothing happens if the batch has another status by now."""

        def change(connection: Connection) -> None:
            mine = self._mine(batch_id)
            if connection.execute(select(batches.c.id).where(mine)).first() is None:
                raise LostLease
            connection.execute(update(batches).where(mine, if_).values(**values))

        await self._database.run(change)

    def _mine(self, batch_id: str) -> ColumnElement[bool]:
        return (batches.c.id == batch_id) & (batches.c.lease_holder == self._holder)
