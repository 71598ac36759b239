"""Start a server process for tests, observe it, and stop it together with its child processes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from tests.processes import descendants, is_running

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 150.0
"""Limit for the start of a server; enough for a busy machine."""
WAIT_SECONDS = 240.0
"""Limit for all other waits. It only guards against hanging; no test depends on the time that a wait takes."""


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "openai_api_server.py"), *flags]


def environment() -> dict[str, str]:
    """Return this process's environment without variables that would change the server's default settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_OCR_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, condition: Callable[[], bool], seconds: float = WAIT_SECONDS, every: float = 0.05) -> float:
    """Wait until `condition()` is true, and return the seconds it took.

    Args:
        what: the condition in words, for the error message.
        seconds: limit after which the wait fails.
        every: seconds between two checks.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - started


class Server:
    """A running server process. `stop` ends it and all of its descendants."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        storage = {"DATABASE_URL": f"sqlite:///{log.parent}/batches.db", "STORAGE_URL": str(log.parent / "files")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command("--host", "127.0.0.1", "--port", str(self.port), *flags),
                cwd=ROOT,
                env=environment() | {f"DEEPSEEK_OCR_{name}": value for name, value in storage.items()},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._descendants: set[psutil.Process] = set()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def health(self) -> httpx.Response | None:
        """Return the response of /health, or None while the server does not accept connections."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5)
        except httpx.TransportError:
            return None

    def wait_ready(self) -> None:
        """Wait until the server can read pages. Fails with the log if it ends before that."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}; its log:\n{self.log}")
            answer = self.health()
            return answer is not None and answer.status_code == 200

        try:
            wait_until("the server is ready", ready, START_SECONDS, every=0.25)
        except AssertionError as error:
            raise AssertionError(f"{error}\nIts log:\n{self.log}") from None
        self.remember_descendants()

    def remember_descendants(self) -> set[psutil.Process]:
        """Record the descendants of the server that run now; return all that were recorded so far."""
        self._descendants.update(descendants(self.process.pid))
        return self._descendants

    def orphans(self) -> list[psutil.Process]:
        """Return the recorded descendants that are still running."""
        return [child for child in self._descendants if is_running(child)]

    def stop(self) -> None:
        self.remember_descendants()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
        for child in self.orphans():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    # The state of the server and its engine, from /metrics

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", self._metrics(), re.MULTILINE)
        assert values, f"/metrics has no {name}"
        return sum(map(float, values))

    def completed_pages(self) -> float:
        """Return the number of pages that were read to their end, not given up, since the server was started."""
        ends = r'outcome="(?:stop|length|repetition)"'
        return sum(
            map(float, re.findall(rf"^ocr_pages_total\{{[^}}]*{ends}[^}}]*\}} (\S+)$", self._metrics(), re.MULTILINE))
        )

    def _metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=WAIT_SECONDS).text

    def engine_requests(self) -> float:
        """Return the number of requests that the engine is running or has queued."""
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")

    def wait_idle(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until neither the engine nor the server has a page to read."""

        def idle() -> bool:
            return self.engine_requests() + self.metric("ocr_pages_in_flight") + self.metric("ocr_pages_waiting") == 0

        wait_until("the engine is idle", idle, seconds)

    def wait_busy(self, requests: int = 1) -> None:
        """Wait until the engine is working on at least `requests` requests."""
        wait_until(f"the engine works on {requests} requests", lambda: self.engine_requests() >= requests)

    @contextlib.contextmanager
    def gives_up_work(self) -> Iterator[None]:
        """Check that no page is read to its end from here until the server is idle again after the block."""
        self.wait_idle()
        before = self.completed_pages()
        yield
        self.wait_idle()
        assert self.completed_pages() == before, "a page was read to its end although its client had left"


@contextlib.contextmanager
def running(log: Path, *flags: str) -> Iterator[Server]:
    """Start a server, which writes its output to `log`, and stop it at the end."""
    server = Server(log, *flags)
    try:
        yield server
    finally:
        server.stop()
