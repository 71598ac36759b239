"""The server that is attacked: the real application behind real connections, with a fake engine, in its own process.

The fake engine answers each page with its colour, so that a client can check that it got the answer to its own page.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import mmap
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai_api_server
from config import EMBEDDED_CHECKPOINT, Settings
from ocr_server.observability import logs
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import Page, PageDelta
from ocr_server.runtime import Runtime

TICK_S = 0.02
SILENT = ".silent.test"
"""Names below this are looked up for ever."""
_STATE = struct.Struct("ddd")


@dataclass(frozen=True)
class Spec:
    """How a server is started."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the tests."""
    limits: dict[int, int] = field(default_factory=dict)
    """Resource limits of the process, by `resource.RLIMIT_…`."""
    seconds_a_page: float = 0.0
    """Time that the fake engine takes for a page."""


class ColourEngine:
    """Answers each page with the colour of its centre."""

    retry_after = 3.0

    def __init__(self, seconds: float) -> None:
        """Args:
        seconds: Time that a page takes.
        """
        self._seconds = seconds

    def unavailable(self) -> str | None:
        return None

    async def check(self, decoding: Decoding) -> None:
        return None

    def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        view = page.image.global_view
        text = colour_text(view[view.shape[0] // 2, view.shape[1] // 2].tolist())
        if "<|grounding|>" in page.prompt:
            text = f"<|ref|>text<|/ref|><|det|>[[50, 50, 950, 950]]<|/det|>\n{text}"
        await asyncio.sleep(self._seconds)
        for choice in range(page.decoding.n):
            yield PageDelta(choice, text, 1, page.image.num_tokens, finish_reason="stop")


def colour_text(colour: Sequence[int]) -> str:
    """Return the answer to a picture of one colour."""
    return "colour " + " ".join(map(str, colour))


class State:
    """The state of a server, in a file that is mapped by the server and by the tests."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(_STATE.pack(0.0, 0.0, 0.0))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), _STATE.size)
        self._trim_is_due = False

    @property
    def longest_stall(self) -> float:
        """Longest stall of the event loop in seconds since it was set to 0."""
        return float(_STATE.unpack(self._memory[:])[0])

    @longest_stall.setter
    def longest_stall(self, seconds: float) -> None:
        self._memory[:] = _STATE.pack(seconds, self.trims, self.clock_is_ahead)

    @property
    def clock_is_ahead(self) -> float:
        """Seconds by which the server's clock is ahead of the real one."""
        return float(_STATE.unpack(self._memory[:])[2])

    @clock_is_ahead.setter
    def clock_is_ahead(self, seconds: float) -> None:
        self._memory[:] = _STATE.pack(self.longest_stall, self.trims, seconds)

    @property
    def trims(self) -> int:
        """How many times the process has given back its free memory, see `trim`."""
        return int(_STATE.unpack(self._memory[:])[1])

    def trim(self) -> None:
        """Give the free memory of this process back to the operating system."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._memory[:] = _STATE.pack(self.longest_stall, self.trims + 1, self.clock_is_ahead)

    def wish_for_trim(self) -> None:
        """Let `measure` call `trim` between two measurements."""
        self._trim_is_due = True

    async def measure(self) -> None:
        """Measure for how long the event loop runs no tasks, until this is cancelled.

        The other programs of a busy machine are not the server's fault. So a stall counts for no more than the time in
        which the loop's thread did not merely wait for a processor, and for no more than the processor time of all
        threads of the process, one of which may have held the interpreter's lock.
        """
        while True:
            if self._trim_is_due:
                self._trim_is_due = False
                self.trim()
            started, waited, used = time.monotonic(), _waited(), time.process_time()
            await asyncio.sleep(TICK_S)
            late = time.monotonic() - started - TICK_S - (_waited() - waited)
            self.longest_stall = max(self.longest_stall, min(late, time.process_time() - used))


def _waited() -> float:
    """Return how long this thread has waited for a processor, in seconds, or 0 if the kernel does not count it."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def run(folder: Path, port: int, spec: Spec) -> None:
    """Run a server until a signal arrives. Its log, its data and its stalls are in `folder`."""
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    settings = Settings(
        **{
            "MODEL_PATH": str(EMBEDDED_CHECKPOINT),
            "DATABASE_URL": f"sqlite:///{folder}/batches.db",
            "STORAGE_URL": f"{folder}/files",
            "PREPARE_THREADS": 2,
            "DECODE_WORKERS": 2,
            "SHUTDOWN_TIMEOUT": 1,
            **spec.settings,
        }
    )
    for which, limit in spec.limits.items():
        resource.setrlimit(which, (limit, limit))
    logs.set_up("info", "text")
    state = State(folder / "state")
    _silence_some_names()
    _set_clock(state)
    listener = openai_api_server.listen("127.0.0.1", port)
    openai_api_server.set_options(listener, settings.SEND_TIMEOUT)
    asyncio.run(_serve(state, settings, listener, spec))


async def _serve(state: State, settings: Settings, listener: socket.socket, spec: Spec) -> None:
    server = openai_api_server.server_for(Runtime.build(settings, ColourEngine(spec.seconds_a_page)), listener)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, state.wish_for_trim)
    others = [
        asyncio.create_task(state.measure()),
        asyncio.create_task(openai_api_server.give_memory_back()),
    ]
    await server.serve(sockets=[listener])
    for each in others:
        each.cancel()


def _silence_some_names() -> None:
    """Make this process's name server one that never answers for some names."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(SILENT):
            time.sleep(600)
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def _set_clock(state: State) -> None:
    """Make this process's clock one that the tests can set."""
    right = time.time
    time.time = lambda: right() + state.clock_is_ahead
