"""PDFs in processes of their own, which may crash, hang or run out of memory without harm to the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from pebble import ProcessPool
from PIL import Image

from ocr_server.intake import pdf_worker
from ocr_server.intake.pdf_worker import PdfError

logger = logging.getLogger(__name__)

START_S = 60.0
"""A process that isn't there by then isn't coming: seconds. It takes under one."""
MAX_TASKS = 1000
"""Calls after which a process makes place for a fresh one."""
STOP_S = 10.0
"""How long `close` waits for the processes' ends: seconds."""

P = ParamSpec("P")
T = TypeVar("T")


class PdfFile:
    """A PDF as a private temporary file, removed by `close` or with the object."""

    def __init__(self, data: bytes, password: str | None) -> None:
        """Writes the file, so not for the event loop. Raises OSError if there is no room for it."""
        self.password = password
        descriptor, self.path = tempfile.mkstemp(prefix="document-", suffix=".pdf")  # readable by this user only
        self._remove = weakref.finalize(self, _unlink, self.path)
        with open(descriptor, "wb") as file:
            file.write(data)

    def close(self) -> None:
        self._remove()


@dataclass(frozen=True)
class PdfInfo:
    page_count: int
    """At least 1. What the file says; a page that isn't there is found out when it is rendered."""


@dataclass(frozen=True)
class RenderedPage:
    image: Image.Image
    """RGB."""
    dpi: float
    """Pixels per inch: as asked, or fewer where the page would have been too large."""


class PdfRenderer:
    """Opens PDFs and renders their pages. One for the whole server; close it with `close`.

    Each process has a pool of its own rather than a place in a common one: one that is killed in the middle of
    an answer leaves the pipe and the locks of its pool in no state to be used, and takes no other call with it.
    """

    def __init__(self, *, workers: int, timeout_s: float, memory_bytes: int) -> None:
        """Args:
        workers: processes at most; each starts when it is first needed.
        timeout_s: for each call, from when a process takes it up: seconds.
        memory_bytes: address space of each process.
        """
        self.timeout_s = timeout_s
        self._workers = [_Worker(timeout_s, memory_bytes) for _ in range(workers)]
        self._idle = list(self._workers)
        self._free = asyncio.Semaphore(workers)
        self._closed = False

    async def inspect(self, file: PdfFile) -> PdfInfo:
        """What a PDF says of itself; its pages aren't looked at.

        Raises:
            PdfError: password_required, password_wrong, damaged, empty; timeout; failed if the process died.
        """
        return PdfInfo(await self._call(pdf_worker.count_pages, file.path, file.password))

    async def render(self, file: PdfFile, index: int, dpi: float, max_pixels: int) -> RenderedPage:
        """One page, upright, on white, with annotations and form fields.

        Args:
            index: the page, counted from 0.
            dpi: pixels per inch.
            max_pixels: width times height; a page that would have more comes at a lower resolution.

        Raises:
            PdfError: as `inspect`; giant_page; page_failed.
        """
        width, height, dpi, pixels = await self._call(
            pdf_worker.render, file.path, file.password, index, dpi, max_pixels
        )
        return RenderedPage(await asyncio.to_thread(Image.frombytes, "RGB", (width, height), pixels), dpi)

    def discard(self, file: PdfFile) -> None:
        """Remove a PDF that is no longer wanted, also from the processes that have it open."""
        file.close()
        for worker in self._idle:
            worker.forget(file.path)

    async def close(self) -> None:
        """End the processes, whatever they are at."""
        self._closed = True
        endings = [worker.stop() for worker in self._workers]
        for ending in endings:
            if ending is not None:
                await asyncio.to_thread(ending.join, STOP_S)

    async def _call(
        self, function: Callable[Concatenate[str, P], T], path: str, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(path, …)` in the process that has the document open, else in one that runs, when it is free."""
        async with self._free:
            if self._closed:
                raise PdfError("failed")
            worker = max(self._idle, key=lambda worker: (worker.path == path, worker.started))
            self._idle.remove(worker)
            try:
                return await worker.call(function, path, *args, **kwargs)
            finally:
                self._idle.append(worker)


class _Worker:
    """One process: started when there is something to do, and again when it was lost."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._pool: ProcessPool | None = None
        self._ending: threading.Thread | None = None
        self.path: str | None = None
        """The document it has open."""

    @property
    def started(self) -> bool:
        return self._pool is not None

    async def call(self, function: Callable[Concatenate[str, P], T], path: str, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            try:
                return await self._attempt(function, path, *args, **kwargs)
            except BrokenExecutor:  # the process died while it had nothing to do
                self.stop()
                return await self._attempt(function, path, *args, **kwargs)
        except PdfError:
            raise
        except TimeoutError as error:
            self.stop()
            raise PdfError("timeout") from error
        except Exception as error:
            self.stop()
            logger.warning("a process that reads PDFs was lost: %r", error)
            raise PdfError("failed") from error
        except BaseException:  # cancelled: nobody wants what the process is at, and the next call has a fresh one
            self.stop()
            raise

    async def _attempt(
        self, function: Callable[Concatenate[str, P], T], path: str, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=1,
                max_tasks=MAX_TASKS,
                initializer=pdf_worker.initialize,
                initargs=(self._memory_bytes,),
                context=multiprocessing.get_context("spawn"),  # this process has threads and CUDA: no fork
            )
        elif not self._pool.active:
            raise BrokenExecutor
        self.path = path
        async with asyncio.timeout(START_S + self._timeout_s):
            return await asyncio.wrap_future(
                self._pool.schedule(function, (path, *args), kwargs, timeout=self._timeout_s)
            )

    def forget(self, path: str) -> None:
        """Have the process, which is idle, close the document at `path` if it has it open."""
        if self.path == path and self._pool is not None and self._pool.active:
            self._pool.schedule(pdf_worker.forget, (path,), timeout=self._timeout_s)
            self.path = None

    def stop(self) -> threading.Thread | None:
        """Kill the process without waiting for it; a thread that ends with it, None if there was none."""
        if self._pool is not None:
            self._ending = threading.Thread(target=_stop, args=(self._pool,), daemon=True)
            self._ending.start()
        self._pool = self.path = None
        return self._ending


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
