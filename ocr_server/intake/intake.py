"""From where a document is to what the engine takes: fetched, opened, and its pages decoded and resized.

vLLM would do the last of it in a single thread for each API process; here every core takes part, and the
event loop stays free.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from deepseek_ocr.images import PreparedImage, prepare_image
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import InvalidRequest
from ocr_server.intake.document import DEFAULT_DPI, Document, Opener
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.load import load
from ocr_server.intake.page_selection import Selection
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.workers import Workers

MOST_THREADS = 16


@dataclass(frozen=True)
class Source:
    """Where a picture or document is, and how it is to be read."""

    url: str
    mode: ResolutionMode
    param: str
    """Its place in the request, for errors."""
    pages: Selection | None = None
    """Which of its pages; None for all. Pictures have one page and no choice."""
    pages_param: str | None = None
    dpi: float = DEFAULT_DPI
    password: str | None = None


class Opens(Protocol):
    """Turns sources into opened documents; the server's `Intake` is one."""

    async def open(self, sources: Sequence[Source]) -> list[Document]: ...


class Intake:
    """Fetches and opens documents, and prepares their pages, under limits."""

    def __init__(self, limits: IntakeLimits, workers: Workers, threads: int = 0) -> None:
        """Args:
        limits: what is accepted.
        workers: decode and render; closed with this.
        threads: for resizing; 0 is one for each core, at most 16.
        """
        self._limits = limits
        self._fetcher = Fetcher(limits)
        self._threads = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, MOST_THREADS), "prepare")
        self._workers = workers
        self._opener = Opener(limits, self._threads, workers)

    async def open(self, sources: Sequence[Source]) -> list[Document]:
        """Fetch and open all of them, in order; close each when it has been read.

        Raises:
            InvalidRequest, TooLarge: one can't be had or opened, or they have more pages than the limit.
        """
        tasks = [asyncio.create_task(self._open(source)) for source in sources]
        try:
            documents = list(await asyncio.gather(*tasks))
        except BaseException:  # after the first failure the others are not worth finishing
            for task in tasks:
                task.cancel()
            for opened in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(opened, Document):
                    await opened.close()
            raise
        pages = sum(document.page_count for document in documents)
        if pages > self._limits.max_pages:
            for document in documents:
                await document.close()
            raise InvalidRequest(
                f"A request can have at most {self._limits.max_pages} pages, not {pages}.",
                param=sources[0].param,
                code="too_many_pages",
            )
        return documents

    async def prepare(self, page: SourcePage, mode: ResolutionMode) -> PreparedImage:
        """The views of a page as the engine takes them."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, prepare_image, page.pixels, mode)

    async def close(self) -> None:
        await self._workers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _open(self, source: Source) -> Document:
        return await self.open_bytes(await load(source.url, self._fetcher, self._limits, param=source.param), source)

    async def open_bytes(self, data: bytes, source: Source) -> Document:
        """What `source` asks for of a file that has been loaded. Raises as `Opener.open`."""
        return await self._opener.open(
            data,
            pages=source.pages,
            dpi=source.dpi,
            password=source.password,
            param=source.param,
            pages_param=source.pages_param or source.param,
        )
