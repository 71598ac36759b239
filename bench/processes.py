"""Servers as processes: started, waited for, and asked what they cost."""

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
    """A running API server. The engine's processes do not count as its own, those that prepare pages do."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        """`command` without its port. `log` takes what it prints."""
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
        """Until it reads pages. Raises RuntimeError if it ends instead."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log.read_text(errors='replace')[-4000:]}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise RuntimeError("the server does not become ready")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def own(self) -> list[psutil.Process]:
        """The API process and its children, less the engine and multiprocessing's resource tracker."""
        api = psutil.Process(self._process.pid)
        engine: set[int] = set()
        for child in api.children():
            if _is_engine(child):
                engine |= {child.pid, *(below.pid for below in child.children(recursive=True))}
        return [api, *(child for child in api.children(recursive=True) if child.pid not in engine)]

    def cpu_seconds(self) -> float:
        """CPU time that its own processes have taken so far."""
        total = 0.0
        for process in self.own():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> float:
        """Bytes that its own processes have in memory; what they share is counted once."""
        total = 0.0
        for process in self.own():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    @contextlib.contextmanager
    def watching_memory(self, every: float = 0.1) -> Iterator[list[float]]:
        """While this is open, memory is noted in the list that it gives."""
        seen: list[float] = [self.memory()]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(every):
                seen.append(self.memory())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join()

    def stop(self) -> None:
        if self._process.poll() is not None:
            return
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        name = f"{process.name()} {' '.join(process.cmdline())}"
        return "VLLM::" in name or "forkserver" in name  # it, or what it is forked from
    return False


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def ours(log: Path) -> Server:
    return Server([sys.executable, "openai_api_server.py"], log)


def vllms(log: Path, *, in_tree: bool = False) -> Server:
    """vLLM's own, with our plugin, or with its own preprocessing."""
    return Server([sys.executable, "-m", "bench.vllm_server", *(["--in-tree"] if in_tree else [])], log)
