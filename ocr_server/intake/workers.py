"""Worker processes that decode files; they may crash, hang or run out of memory without affecting the server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ocr_server.errors import RESOURCES_RETRY_S, OutOfResources, Unavailable, out_of_resources
from ocr_server.intake import sandbox
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.source_page import Rgb
from ocr_server.intake.spawn import cpu_seconds, spawn
from ocr_server.intake.worker import DESCRIPTOR, TAKEN, store

logger = logging.getLogger(__name__)

START_S = 60.0
"""Time in seconds after which starting a process is given up. It usually takes a tenth of a second."""
MAX_CALLS = 1000
"""Number of calls after which a process is replaced by a new one."""
LEAST_CPU = 0.1
"""Fraction of the time limit of a call that the process must have computed. If it was less, the machine did not let it
run: the file is not at fault."""
EXIT_S = 5.0
"""Time in seconds in which a process must have ended after it has closed its channel."""
STOP_S = 10.0
"""Time in seconds that `close` waits for each process to end."""
KEPT_BYTES = 32_000_000
"""Size up to which the memory shared with a process is kept from page to page: an A4 page at 300 dpi."""

_LONGEST_ANSWER = 65_536
_REFUSALS = {kind.__name__: kind for kind in (SourceError, SourceTooLarge, PdfError)}


class WorkerTimeout(Exception):
    """The call took too long; its process has been killed."""


class WorkerLost(Exception):
    """The process died during the call or sent an invalid response. The next call starts a new one."""


class _Gone(Exception):
    """The process had died before it accepted the call."""


class _Died(Exception):
    """The process died during the call."""

    def __init__(self, status: int | None) -> None:
        """Args:
        status: Its exit status as in `Popen.returncode`; None if it had only closed its channel.
        """
        super().__init__(f"exit status {status}")
        self.status = status


class Workers:
    """Calls functions of the modules `*_worker` in a pool of processes. One pool for each server process.

    A worker has one document open at a time, which is not sent or parsed again for its next page.
    """

    def __init__(self, *, count: int, timeout_s: float, memory_bytes: int) -> None:
        """Args:
        count: Maximum number of processes; each is started when it is first needed.
        timeout_s: Time limit for each call in seconds, from when a process starts on it.
        memory_bytes: Limit of the address space of each process.
        """
        self.timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(count, "decoders")
        self._workers = [_Worker(timeout_s, memory_bytes, self._threads, self.started) for _ in range(count)]
        self._idle = list(self._workers)
        self._free = asyncio.Semaphore(count)
        self._closed = False
        self._explained = False

    async def call(
        self,
        document: str,
        function: str,
        *arguments: Any,
        data: bytes | None = None,
        file: BinaryIO | None = None,
    ) -> tuple[Any, Rgb | None]:
        """Call `function(*arguments)` in a process, waiting until one is free.

        Prefers the process that has `document` open, then one that is already running.

        Args:
            document: A unique name of the document.
            function: `module.name`.
            arguments: Values that JSON can represent.
            data: The file, for pictures.
            file: The file, for PDFs.

        Returns:
            What the function returned: its value, and the pixels of the page if it returned any.

        Raises:
            SourceError, PdfError: Raised by the function.
            WorkerTimeout: The call took too long.
            WorkerLost: The process crashed twice, or the function raised an unexpected error.
            Unavailable: No process can be started, the process was killed twice, it did not get to run, or the machine
                has run out of memory.
        """
        async with self._free:
            if self._closed:
                raise Unavailable("The server is shutting down.")
            worker = max(self._idle, key=lambda worker: (worker.document == document, worker.started))
            self._idle.remove(worker)
            try:
                return await worker.call(_Call(document, function, arguments, data, file))
            finally:
                self._idle.append(worker)

    def forget(self, document: str, function: str, *arguments: Any) -> None:
        """Make the idle processes that have `document` open close it, by calling `function`."""
        for worker in self._idle:
            if worker.document == document:
                worker.forget(function, arguments)

    async def close(self) -> None:
        """Kill the processes, also during a call, and wait until they have ended."""
        self._closed = True
        endings = [worker.stop() for worker in self._workers]
        for ending in endings:
            if ending is not None:
                await asyncio.to_thread(ending.join, STOP_S)
        self._threads.shutdown(wait=False)

    def started(self, gaps: Sequence[sandbox.Gap]) -> None:
        """Log once what the processes could not be cut off from."""
        if gaps and not self._explained:
            self._explained = True
            logger.warning(sandbox.explain(gaps))


class _Call(NamedTuple):
    document: str
    function: str
    arguments: tuple[Any, ...]
    data: bytes | None
    file: BinaryIO | None


class _Worker:
    """One process: started when it is needed, and again after it was lost."""

    def __init__(
        self,
        timeout_s: float,
        memory_bytes: int,
        threads: Executor,
        started: Callable[[Sequence[sandbox.Gap]], None],
    ) -> None:
        """Args:
        threads: Copies files and pixels between this process and the other.
        started: Called with what a new process could not be cut off from.
        """
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._threads = threads
        self._started = started
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._memory: io.FileIO
        self._received = b""
        self._calls = 0
        self.document: str | None = None
        """Name of the document that it has open."""

    @property
    def started(self) -> bool:
        return self._process is not None

    async def call(self, call: _Call) -> tuple[Any, Rgb | None]:
        """Raises as `Workers.call`.

        A process that dies is replaced once. It may have been killed because of the other processes of the machine, or
        have crashed because of the document that it had open before.
        """
        gone, died = False, False
        while True:
            try:
                return await self._attempt(call)
            except (SourceError, PdfError):
                raise
            except BaseException as error:  # also if cancelled: the process may still be working
                self.stop()
                if isinstance(error, _Gone) and not gone:  # it had died while it was idle
                    gone = True
                elif isinstance(error, _Died) and not died:
                    died = True
                    logger.warning("A decoder process died (%s). Trying once more with a new one.", error)
                elif (reason := _reason(error)) is not error:
                    raise reason from error
                else:
                    raise

    def forget(self, function: str, arguments: tuple[Any, ...]) -> None:
        """Make the process, which is idle, close the document that it has open."""
        self.document = None
        with contextlib.suppress(OSError):  # the process has died
            self._channel.send(_line(function, arguments, None))

    def stop(self) -> threading.Thread | None:
        """Kill the process without waiting. Returns a thread that ends with it, None if there was no process."""
        process, self._process, self.document = self._process, None, None
        if process is None:
            return None
        process.kill()
        self._channel.close()
        del self._memory  # closed when no thread uses it any more
        ending = threading.Thread(target=process.wait, daemon=True)
        ending.start()
        return ending

    async def _attempt(self, call: _Call) -> tuple[Any, Rgb | None]:
        if self._calls >= MAX_CALLS:
            self.stop()
        if self._process is None:
            await self._start()
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        given: int | str | None = None
        if call.document != self.document:
            if call.data is not None:
                given = len(call.data)
                await run(store, self._memory.fileno(), call.data)
            elif call.file is not None:
                given = DESCRIPTOR
        self.document = call.document
        self._calls += 1
        used = cpu_seconds(self._process)
        try:
            answer = await self._answered(call, given)
        except TimeoutError as error:
            if cpu_seconds(self._process) - used < LEAST_CPU * self._timeout_s:
                raise Unavailable(
                    "The process that decodes the file did not get to run on this machine. Try again later.",
                    retry_after=RESOURCES_RETRY_S,
                ) from error
            raise
        if "refused" in answer:
            kind, parameters, attributes = answer["refused"]
            refusal = _REFUSALS[kind](*parameters)
            vars(refusal).update(attributes)
            raise refusal
        if "exhausted" in answer:
            logger.error("A decoder process has run out of resources: %s", answer["exhausted"])
            raise _out_of_resources()
        if "failed" in answer:
            raise WorkerLost(answer["failed"])
        pixels = None
        if answer["size"] is not None:
            pixels = await run(_pixels, self._memory, *answer["size"])
        return answer["value"], pixels

    async def _answered(self, call: _Call, given: int | str | None) -> Any:
        """Send the call, and return the answer. Raises TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            try:
                attached = call.file if given == DESCRIPTOR else None
                await self._send(_line(call.function, call.arguments, given), attached)
                await self._taken()
            except OSError as error:
                raise _Gone from error
            try:
                return await self._answer()
            except ConnectionError as error:
                raise _Died(await self._exit_status()) from error

    async def _start(self) -> None:
        """Start the process. Raises Unavailable."""
        self._calls, self._received = 0, b""
        try:
            with contextlib.ExitStack() as stack:
                self._channel, theirs = socket.socketpair()
                stack.callback(theirs.close)
                unless_started = stack.enter_context(contextlib.ExitStack())
                unless_started.callback(self._channel.close)
                self._channel.setblocking(False)
                self._memory = io.FileIO(os.memfd_create("page"), "r+")
                self._process = spawn(theirs.fileno(), self._memory.fileno(), self._memory_bytes)
                unless_started.pop_all()
            async with asyncio.timeout(START_S):
                gaps = await self._answer()
        except OSError as error:
            logger.error("A worker process can't be started: %r", error)
            raise Unavailable(
                "The server can't start a process to decode the file.", retry_after=RESOURCES_RETRY_S
            ) from error
        self._started(gaps)

    async def _send(self, line: bytes, file: BinaryIO | None) -> None:
        """Send a line, and with it the descriptor of `file`. Raises OSError."""
        if file is not None:
            line = line[socket.send_fds(self._channel, [line], [file.fileno()]) :]
        await asyncio.get_running_loop().sock_sendall(self._channel, line)

    async def _exit_status(self) -> int | None:
        """Return the exit status of the process, which has closed its channel; None if it does not end."""
        process = self._process
        assert process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_S):
                while process.poll() is None:  # noqa: ASYNC110  # a pidfd would need a descriptor, which may be scarce
                    await asyncio.sleep(0.01)
        return process.poll()

    async def _taken(self) -> None:
        """Wait until the process has accepted a call or is ready. Raises OSError."""
        if await self._answer() != TAKEN:
            raise OSError("unexpected response")

    async def _answer(self) -> Any:
        """Return the next line from the process, parsed. Raises OSError if there is none."""
        while b"\n" not in self._received:
            if len(self._received) > _LONGEST_ANSWER:
                raise OSError("the response is too long")
            received = await asyncio.get_running_loop().sock_recv(self._channel, _LONGEST_ANSWER)
            if not received:
                raise ConnectionResetError("the process has ended")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


def _line(function: str, arguments: tuple[Any, ...], given: int | str | None) -> bytes:
    return json.dumps([function, arguments, given]).encode() + b"\n"


def _reason(error: BaseException) -> BaseException:
    """Return what to raise when a call has failed for good: whether it is the fault of the file or of the machine."""
    if isinstance(error, TimeoutError):
        return WorkerTimeout()
    if isinstance(error, Unavailable) or not isinstance(error, Exception):
        return error
    logger.warning("A call of a decoder process failed: %r", error)
    # The kernel kills a process when memory runs out. One that dies before it sees the file is not the file's fault.
    if isinstance(error, _Gone) or (isinstance(error, _Died) and error.status == -signal.SIGKILL):
        return _out_of_resources()
    return out_of_resources(error) or WorkerLost()


def _out_of_resources() -> OutOfResources:
    return OutOfResources(
        "The process that decodes the file was killed, or found no memory left on this machine. Try again later.",
        retry_after=RESOURCES_RETRY_S,
    )


def _pixels(memory: io.FileIO, width: int, height: int) -> Rgb:
    """Return a copy of the page in the shared memory, which the process could still change. Raises ValueError."""
    size = width * height * 3
    if min(width, height) < 1 or size > os.fstat(memory.fileno()).st_size:
        raise ValueError("invalid page size")
    copy = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):  # not supported by this kernel
        copy.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults than with thousands of small memory pages
    if os.preadv(memory.fileno(), [copy], 0) != size:
        raise ValueError("the page is incomplete")
    if size > KEPT_BYTES:
        os.ftruncate(memory.fileno(), 0)
    return np.frombuffer(copy, np.uint8).reshape(height, width, 3)
