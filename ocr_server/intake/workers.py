"""Processes that decode, which may crash, hang or run out of memory without harm to the server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import mmap
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ocr_server.errors import Unavailable
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.source_page import Rgb
from ocr_server.intake.worker import TAKEN, store

logger = logging.getLogger(__name__)

START_S = 60.0
"""A process that isn't there by then isn't coming: seconds. It takes a tenth of one."""
MAX_CALLS = 1000
"""Calls after which a process makes place for a fresh one."""
STOP_S = 10.0
"""How long `close` waits for the processes' ends: seconds."""
KEPT_BYTES = 32_000_000
"""Of the memory that a process shares with the server, what stays from page to page: an A4 page at 300 dpi."""

_LONGEST_ANSWER = 65_536
_REFUSALS = {kind.__name__: kind for kind in (SourceError, SourceTooLarge, PdfError)}
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What of the environment the processes see: keys and tokens are none of their business."""
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # an arena for each thread would use up the address space
    "MALLOC_MMAP_THRESHOLD_": "32000000",  # the memory of one page serves for the next
    "MALLOC_TRIM_THRESHOLD_": "64000000",
}


class WorkerTimeout(Exception):
    """The call took too long; its process was killed."""


class WorkerLost(Exception):
    """The process died of the call, or was in no state to go on; a fresh one takes the next."""


class _Gone(Exception):
    """The process had died before it took the call."""


class Workers:
    """Calls functions of the modules `*_worker` in processes of their own. One for the whole server.

    A process works on one document at a time and keeps it, so that taking its next page costs no more than that.
    """

    def __init__(self, *, count: int, timeout_s: float, memory_bytes: int) -> None:
        """Args:
        count: processes at most; each starts when it is first needed.
        timeout_s: for each call, from when a process takes it up: seconds.
        memory_bytes: address space of each process.
        """
        self.timeout_s = timeout_s
        self._workers = [_Worker(timeout_s, memory_bytes) for _ in range(count)]
        self._idle = list(self._workers)
        self._free = asyncio.Semaphore(count)
        self._closed = False

    async def call(
        self, document: str, function: str, *arguments: Any, data: bytes | None = None
    ) -> tuple[Any, Rgb | None]:
        """`function(*arguments)` in the process that has `document` open, else in one that runs, when it is free.

        Args:
            document: its name, which is no other's.
            function: `module.name`.
            arguments: as JSON can write them.
            data: for pictures, the file.

        Returns:
            What the function returns: its value, and the page that comes with it.

        Raises:
            SourceError, PdfError: as the function does.
            WorkerTimeout, WorkerLost: instead of an answer.
            Unavailable: no process can be started.
        """
        async with self._free:
            if self._closed:
                raise Unavailable("The server is shutting down.")
            worker = max(self._idle, key=lambda worker: (worker.document == document, worker.started))
            self._idle.remove(worker)
            try:
                return await worker.call(document, function, arguments, data)
            finally:
                self._idle.append(worker)

    def forget(self, document: str, function: str, *arguments: Any) -> None:
        """Have the processes that have `document` open close it, by `function`."""
        for worker in self._idle:
            if worker.document == document:
                worker.forget(function, arguments)

    async def close(self) -> None:
        """End the processes, whatever they are at."""
        self._closed = True
        endings = [worker.stop() for worker in self._workers]
        for ending in endings:
            if ending is not None:
                await asyncio.to_thread(ending.join, STOP_S)


class _Worker:
    """One process: started when there is something to do, and again when it was lost."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._memory: io.FileIO
        self._received = b""
        self._calls = 0
        self.document: str | None = None
        """What it has open."""

    @property
    def started(self) -> bool:
        return self._process is not None

    async def call(
        self, document: str, function: str, arguments: tuple[Any, ...], data: bytes | None
    ) -> tuple[Any, Rgb | None]:
        try:
            try:
                return await self._attempt(document, function, arguments, data)
            except _Gone:  # while it had nothing to do
                self.stop()
                return await self._attempt(document, function, arguments, data)
        except (SourceError, PdfError):
            raise
        except BaseException as error:  # cancelled, too: nobody wants what the process is at
            process = self._process
            self.stop()
            if isinstance(error, TimeoutError):
                raise WorkerTimeout from error
            if isinstance(error, Exception) and not isinstance(error, Unavailable):
                status = None if process is None else process.poll()
                logger.warning("a process that decodes was lost (status %s): %r", status, error)
                raise WorkerLost from error
            raise

    def forget(self, function: str, arguments: tuple[Any, ...]) -> None:
        """Have the process, which is idle, close what it has open."""
        self.document = None
        with contextlib.suppress(OSError):  # it has died
            self._channel.send(_line([function, arguments, None]))

    def stop(self) -> threading.Thread | None:
        """Kill the process without waiting for it; a thread that ends with it, None if there was none."""
        process, self._process, self.document = self._process, None, None
        if process is None:
            return None
        process.kill()
        self._channel.close()
        del self._memory  # closed when the thread that may be at it is done
        ending = threading.Thread(target=process.wait, daemon=True)
        ending.start()
        return ending

    async def _attempt(
        self, document: str, function: str, arguments: tuple[Any, ...], data: bytes | None
    ) -> tuple[Any, Rgb | None]:
        if self._calls >= MAX_CALLS:
            self.stop()
        if self._process is None:
            await self._start()
        size = None
        if data is not None and document != self.document:
            size = len(data)
            await asyncio.to_thread(store, self._memory.fileno(), data)
        self.document = document
        self._calls += 1
        async with asyncio.timeout(self._timeout_s):
            try:
                await asyncio.get_running_loop().sock_sendall(self._channel, _line([function, arguments, size]))
                await self._taken()
            except OSError as error:
                raise _Gone from error
            answer = await self._answer()
        if "refused" in answer:
            kind, given, attributes = answer["refused"]
            refusal = _REFUSALS[kind](*given)
            vars(refusal).update(attributes)
            raise refusal
        if "failed" in answer:
            raise WorkerLost(answer["failed"])
        pixels = None
        if answer["size"] is not None:
            pixels = await asyncio.to_thread(_pixels, self._memory, *answer["size"])
        return answer["value"], pixels

    async def _start(self) -> None:
        """Raises Unavailable."""
        self._calls, self._received = 0, b""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._memory = io.FileIO(os.memfd_create("page"), "r+")
        try:
            self._process = _spawn(theirs.fileno(), self._memory.fileno(), self._memory_bytes)
            theirs.close()
            async with asyncio.timeout(START_S):
                await self._taken()
        except OSError as error:
            theirs.close()
            logger.error("a process that decodes can't be started: %r", error)
            raise Unavailable("The server can't start the process that would decode this.") from error

    async def _taken(self) -> None:
        """Returns when the process has taken up what it is to do. Raises OSError."""
        if await self._answer() != TAKEN:
            raise OSError("another answer was due")

    async def _answer(self) -> Any:
        """The next line from the process. Raises OSError if there is none."""
        while b"\n" not in self._received:
            if len(self._received) > _LONGEST_ANSWER:
                raise OSError("an endless answer")
            received = await asyncio.get_running_loop().sock_recv(self._channel, _LONGEST_ANSWER)
            if not received:
                raise ConnectionResetError("the process is gone")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


def _spawn(channel: int, memory: int, memory_bytes: int) -> subprocess.Popen[bytes]:
    """A process that has these file descriptors. Raises OSError.

    Not by multiprocessing, which would import the server's main module and vLLM with it; and by the thread that the
    event loop is in, since a process ends with the thread that started it.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ocr_server.intake.worker", str(channel), str(memory), str(memory_bytes)],
        pass_fds=(channel, memory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ENVIRONMENT,
        # Ctrl-C is for the server. A session would keep it away, too, but Linux gives each session as much of the
        # processors as the next (sched_autogroup): as much as the server and the engine together.
        process_group=0,
    )


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pixels(memory: io.FileIO, width: int, height: int) -> Rgb:
    """The page in memory. A copy: the process could change or cut what is shared. Raises ValueError."""
    size = width * height * 3
    if min(width, height) < 1 or size > os.fstat(memory.fileno()).st_size:
        raise ValueError("an impossible size")
    copy = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):  # a kernel without them
        copy.madvise(mmap.MADV_HUGEPAGE)  # a page of paper is thousands of the small ones, each of which costs a fault
    if os.preadv(memory.fileno(), [copy], 0) != size:
        raise ValueError("less than that is there")
    if size > KEPT_BYTES:
        os.ftruncate(memory.fileno(), 0)
    return np.frombuffer(copy, np.uint8).reshape(height, width, 3)
