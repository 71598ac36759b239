"""From where a picture is to what the engine takes: fetched, decoded and resized, in our own threads.

vLLM would do this work in a single thread for each API process; here every core takes part, and the
event loop stays free.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deepseek_ocr.images import PreparedImage, prepare_image
from deepseek_ocr.modes import ResolutionMode
from ocr_server.errors import InvalidRequest
from ocr_server.intake.decode import decode_pages
from ocr_server.intake.fetch import Fetcher
from ocr_server.intake.limits import IntakeLimits
from ocr_server.intake.sources import load

MOST_THREADS = 16


@dataclass(frozen=True)
class ImageSource:
    """Where a picture is, and how it is to be read."""

    url: str
    mode: ResolutionMode
    param: str
    """Its place in the request, for errors."""


class Intake:
    """Fetches, decodes and prepares pictures, under limits."""

    def __init__(self, limits: IntakeLimits, threads: int = 0) -> None:
        """Args:
        limits: what is accepted.
        threads: for decoding and resizing; 0 is one for each core, at most 16.
        """
        self._limits = limits
        self._fetcher = Fetcher(limits)
        self._threads = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, MOST_THREADS), "prepare")

    async def pages(self, sources: Sequence[ImageSource], *, most: int) -> list[PreparedImage]:
        """All pages of all pictures, in order.

        Raises:
            InvalidRequest, TooLarge: a picture can't be had or read, or there are more than `most` pages.
        """
        tasks = [asyncio.create_task(self._pages_of(source)) for source in sources]
        try:
            pages = [page for of_source in await asyncio.gather(*tasks) for page in of_source]
        finally:  # after the first failure the others are not worth finishing
            for task in tasks:
                task.cancel()
        if len(pages) > most:
            raise InvalidRequest(f"A request can have at most {most} pages, not {len(pages)}.", param="messages")
        return pages

    async def close(self) -> None:
        await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _pages_of(self, source: ImageSource) -> list[PreparedImage]:
        data = await load(source.url, self._fetcher, self._limits, param=source.param)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._prepare, data, source)

    def _prepare(self, data: bytes, source: ImageSource) -> list[PreparedImage]:
        pages = decode_pages(data, self._limits, param=source.param)
        return [prepare_image(page, source.mode) for page in pages]
