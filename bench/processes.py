"""Start servers as processes, wait until they are ready, and measure their CPU time and memory."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
READY_SECONDS = 600


class Server:
    """A running API server. The processes that prepare pages are included in its costs, those of the engine are not."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        """Start a server on a free port.

        Args:
            command: the command, without the options for host and port.
            log: the file to which its output is written.
            environment: additional environment variables.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = log
        self.started = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Wait until the server is ready.

        Raises:
            RuntimeError: the server has exited, or is not ready after `READY_SECONDS`.
        """
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server exited:\n{self.log.read_text(errors='replace')[-4000:]}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server was not ready after {READY_SECONDS} s; its log is in {self.log}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def own(self) -> list[psutil.Process]:
        """Return the API process and its children, without the processes of the engine."""
        api = psutil.Process(self._process.pid)
        engine: set[int] = set()
        for child in api.children():
            if _is_engine(child):
                engine |= {child.pid, *(below.pid for below in child.children(recursive=True))}
        return [api, *(child for child in api.children(recursive=True) if child.pid not in engine)]

    def cpu_seconds(self) -> float:
        """Return the CPU time that these processes have used so far, in seconds."""
        total = 0.0
        for process in self.own():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> float:
        """Return the memory of these processes in bytes. Shared memory is counted once (proportional set size)."""
        total = 0.0
        for process in self.own():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    @contextlib.contextmanager
    def watching_memory(self, every: float = 0.1) -> Iterator[list[float]]:
        """Measure the memory repeatedly while the context is open.

        Args:
            every: seconds between two measurements.

        Yields:
            A list to which the measurements are appended; the first one is made immediately.
        """
        measurements: list[float] = [self.memory()]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(every):
                measurements.append(self.memory())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield measurements
        finally:
            done.set()
            thread.join()

    def stop(self) -> None:
        """Terminate the server, and kill what is left of it and its children after 20 seconds."""
        if self._process.poll() is not None:
            return
        processes = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        name = f"{process.name()} {' '.join(process.cmdline())}"
        return "VLLM::" in name or "forkserver" in name  # the engine, or the process that it is forked from
    return False


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Wait until a server is ready, and stop it at the end of the context."""
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def ours(log: Path) -> Server:
    """Start this project's server."""
    return Server([sys.executable, "openai_api_server.py"], log)


def vllms(log: Path, *, in_tree: bool = False) -> Server:
    """Start vLLM's server, with this project's plugin or (`in_tree`) with vLLM's own preprocessing."""
    return Server([sys.executable, "-m", "bench.vllm_server", *(["--in-tree"] if in_tree else [])], log)
