"""Many pages, read at once and answered in order. Every endpoint reads through here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ocr_server.reading.engine import Engine
from ocr_server.reading.page import Page, PageDelta

PAGE_SEPARATOR = "\n\n<--- Page Split --->\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a page's answer, with the page it belongs to."""

    page: int
    delta: PageDelta


_Outcome = PageDelta | BaseException | None


async def read_pages(engine: Engine, pages: Sequence[Page]) -> AsyncGenerator[Piece]:
    """Read all pages concurrently and yield their pieces page after page.

    The first page's pieces come as they are made; those of later pages wait for their turn. Closing
    the generator aborts every page that is still being read.

    Raises:
        ApiError: as `Engine.read`, for the first page that failed.
    """
    queues: list[asyncio.Queue[_Outcome]] = [asyncio.Queue() for _ in pages]
    readers = [asyncio.create_task(_pump(engine, page, queue)) for page, queue in zip(pages, queues, strict=True)]
    try:
        for number, queue in enumerate(queues):
            while (outcome := await queue.get()) is not None:
                if isinstance(outcome, BaseException):
                    raise outcome
                yield Piece(number, outcome)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _pump(engine: Engine, page: Page, queue: asyncio.Queue[_Outcome]) -> None:
    """Move a page's pieces to its queue, then None, or what went wrong."""
    try:
        async with aclosing(engine.read(page)) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one choice's whole answer."""

    choice: int
    text: str
    delta: PageDelta


async def joined(
    pieces: AsyncGenerator[Piece], *, copies: int = 1, separator: str = PAGE_SEPARATOR
) -> AsyncGenerator[Part]:
    """The pages of each choice as one text, `separator` between pages.

    `copies` answers the only choice that was made several times over: greedy decoding would make the
    same one again.
    """
    last_page: dict[int, int] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            choice = piece.delta.choice
            pages_further = piece.page - last_page.get(choice, 0)
            last_page[choice] = piece.page
            text = separator * pages_further + piece.delta.text
            for copy in range(copies):
                yield Part(choice + copy, text, piece.delta)
