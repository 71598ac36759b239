"""Writes the output file and the error file of a batch, each in the order of the requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing, suppress

from sqlalchemy import RowMapping

from ocr_server.batches.leases import Leases, WrittenFile
from ocr_server.batches.requests import Item, Requests
from ocr_server.batches.storage import Storage
from ocr_server.errors import InvalidRequest, NotFound


async def write_files(
    storage: Storage,
    leases: Leases,
    batch: RowMapping,
    requests: Requests,
    unanswered: Callable[[Item], str],
    remaining: int,
) -> dict[str, WrittenFile]:
    """Write the files of a batch.

    The ids of the files are derived from the id of the batch. If a server crashes here, the next one overwrites them.

    Args:
        storage: Where the files are written.
        leases: Has the answers.
        batch: The batch.
        requests: Its requests.
        unanswered: Returns the error line of a request without an answer.
        remaining: Number of requests without an answer.

    Returns:
        The files: `output` and `error`. A file without any lines is not written.

    Raises:
        Unavailable: The database or the storage is unavailable.
    """
    written = {}
    lines = {
        "output": (batch["completed"], _answers(leases, batch["id"], succeeded=True)),
        "error": (batch["failed"] + remaining, _errors(leases, batch["id"], requests, unanswered, remaining)),
    }
    for kind, (count, texts) in lines.items():
        file_id = f"file-{kind}-{batch['id'].removeprefix('batch_')}"
        if count:
            written[kind] = WrittenFile(file_id, await _written(storage, file_id, texts))
    return written


async def _answers(leases: Leases, batch_id: str, *, succeeded: bool) -> AsyncGenerator[list[str]]:
    line = 0
    while rows := await leases.some_answers(batch_id, succeeded=succeeded, after=line):
        yield [text for _, text in rows]
        line = rows[-1][0]


async def _errors(
    leases: Leases, batch_id: str, requests: Requests, unanswered: Callable[[Item], str], remaining: int
) -> AsyncGenerator[list[str]]:
    async for some in _answers(leases, batch_id, succeeded=False):
        yield some
    if remaining:
        with suppress(NotFound, InvalidRequest):  # the input file is gone, so its requests are unknown
            async with aclosing(requests.items(await leases.answered(batch_id))) as items:
                async for item in items:
                    yield [unanswered(item)]


async def _written(storage: Storage, file_id: str, texts: AsyncGenerator[list[str]]) -> int:
    """Write a file, and return its size in bytes."""
    size = 0
    with ExitStack() as stack:
        file = await storage.run(stack.enter_context, storage.create(file_id))
        async with aclosing(texts):
            async for some in texts:
                data = "".join(f"{text}\n" for text in some).encode()
                await storage.run(file.write, data)
                size += len(data)
        await storage.run(stack.close)
    return size
