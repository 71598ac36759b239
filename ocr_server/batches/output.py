"""The files that a batch leaves: answers, and errors, each in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from sqlalchemy import RowMapping

from ocr_server.batches.leases import Leases, Left
from ocr_server.batches.requests import Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.errors import InvalidRequest, NotFound


async def write_files(
    storage: Storage,
    leases: Leases,
    batch: RowMapping,
    requests: Requests,
    unanswered: Callable[[Item], str],
    rest: int,
) -> dict[str, Left]:
    """Write those that have a line; by what they are: output, error.

    They are named by the batch: written again, after a server has died over it, they replace themselves.

    Args:
        unanswered: the error line of a request without an answer.
        rest: how many of those there are.

    Raises:
        Unavailable: the database or the storage can't be used.
    """
    left = {}
    lines = {
        "output": (batch["completed"], _answers(leases, batch["id"], succeeded=True)),
        "error": (batch["failed"] + rest, _errors(leases, batch["id"], requests, unanswered, rest)),
    }
    for kind, (count, texts) in lines.items():
        file_id = f"file-{kind}-{batch['id'].removeprefix('batch_')}"
        if count:
            left[kind] = Left(file_id, await _written(storage, file_id, texts))
    return left


async def _answers(leases: Leases, batch_id: str, *, succeeded: bool) -> AsyncGenerator[list[str]]:
    line = 0
    while rows := await leases.some_answers(batch_id, succeeded=succeeded, after=line):
        yield [text for _, text in rows]
        line = rows[-1][0]


async def _errors(
    leases: Leases, batch_id: str, requests: Requests, unanswered: Callable[[Item], str], rest: int
) -> AsyncGenerator[list[str]]:
    async for some in _answers(leases, batch_id, succeeded=False):
        yield some
    if rest:
        with suppress(NotFound, InvalidRequest):  # somebody has taken the input away: nobody knows what was in it
            async with aclosing(requests.items(await leases.answered(batch_id))) as items:
                async for item in items:
                    yield [unanswered(item)]


async def _written(storage: Storage, file_id: str, texts: AsyncGenerator[list[str]]) -> int:
    """Bytes written."""
    written = 0
    file = await asyncio.to_thread(storage.create, file_id)
    try:
        async with aclosing(texts):
            async for some in texts:
                data = "".join(f"{text}\n" for text in some).encode()
                await asyncio.to_thread(file.write, data)
                written += len(data)
        await asyncio.to_thread(storage.sync, file)
    finally:
        await asyncio.to_thread(file.close)
    return written
