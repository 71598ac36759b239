"""From sources to what the engine takes: files are fetched and opened, their pages decoded and resized.

vLLM would do the last step in a single thread of each API process; here every core takes part, and the event loop
stays free.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from deepseek_ocr.images import PreparedImage, prepare_image
from deepseek_ocr.modes import ResolutionMode
from ocr_server.intake.document import Document
from ocr_server.intake.errors import SourceError
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.load import Loader
from ocr_server.intake.opener import Opener
from ocr_server.intake.resolver import Resolver
from ocr_server.intake.source import Source
from ocr_server.intake.source_page import SourcePage
from ocr_server.intake.stored import StoredFiles
from ocr_server.intake.workers import Workers
from ocr_server.memory import MemoryBudget, Reservation, Use

MAX_THREADS = 16


class Intake:
    """Fetches and opens sources, and prepares their pages, under limits. One for each process."""

    def __init__(self, limits: IntakeLimits, workers: Workers, memory: MemoryBudget, threads: int = 0) -> None:
        """Args:
        limits: What is accepted.
        workers: Processes that decode and render; closed with the intake.
        memory: What fetched files and decoded pages draw on.
        threads: Threads for resizing; 0 is one for each core, at most 16.
        """
        self._limits = limits
        self._memory = memory
        self._fetcher = Fetcher(limits)
        self._resolver = Resolver()
        self._threads = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, MAX_THREADS), "prepare")
        self._workers = workers
        self._opener = Opener(limits, self._threads, workers, memory)

    async def open(
        self, sources: Sequence[Source], client: str = "", files: StoredFiles | None = None
    ) -> list[Document]:
        """Fetch and open all sources, in order. Close each document when it has been read.

        If a source fails, all documents are closed, also those that were handed over open.

        Args:
            client: On whose behalf. Clients take turns with memory, and the number of names that are looked up for one
                at the same time is limited.
            files: The stored files that the client may use; None if there are none.

        Raises:
            SourceError: A source cannot be fetched or opened, or together they have more pages than the limit; its
                `source` says which one it is.
            TooMany: There is no memory for a file at present.
            Unavailable: No process can be started to decode in, or the machine has run out of memory, disk space or
                file descriptors.
        """
        fetcher = self._fetcher.resolving(self._resolver.for_request(client))
        loader = Loader(fetcher, files, self._limits, self._threads)
        tasks = [
            asyncio.create_task(self._open(number, source, loader, client)) for number, source in enumerate(sources)
        ]
        try:
            documents = list(await asyncio.gather(*tasks))
        except BaseException:  # after the first failure the others are of no use
            for task in tasks:
                task.cancel()
            opened = await asyncio.gather(*tasks, return_exceptions=True)
            # A task that was cancelled before it began has not returned the open document of its source.
            for each in (*opened, *(source.content for source in sources)):
                if isinstance(each, Document):
                    await each.close()
            raise
        pages = sum(document.page_count for document in documents)
        if pages > self._limits.max_pages:
            for document in documents:
                await document.close()
            raise SourceError(
                f"A request can have at most {self._limits.max_pages} pages, not {pages}.", code="too_many_pages"
            )
        return documents

    async def prepare(self, page: SourcePage, mode: ResolutionMode) -> PreparedImage:
        """Resize a page into the views that the engine takes."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, prepare_image, page.pixels, mode)

    async def close(self) -> None:
        self._resolver.close()
        await self._workers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _open(self, number: int, source: Source, loader: Loader, client: str) -> Document:
        if isinstance(source.content, Document):
            return source.content
        memory = self._memory.reserve(Use.SOURCES, client=client)
        try:
            document = await self._opened(source, loader, memory, client)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they refer to the file, which would outlive its reservation
            memory.close()
            if isinstance(error, SourceError):
                error.source = number
            raise
        document.memory = memory
        return document

    async def _opened(self, source: Source, loader: Loader, memory: Reservation, client: str) -> Document:
        if not isinstance(source.content, bytes | Document):
            data = await loader.load(source.content, memory)
            source = replace(source, content=data)
        return await self._opener.open(source, client)
