"""A server process for tests: started, waited for, watched, and ended with everything it started."""

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

from tests.processes import descendants, lives

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 150.0
"""Enough for a machine that is busy with something else."""


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "openai_api_server.py"), *flags]


def environment() -> dict[str, str]:
    """This process's own, less what would set the server up differently from its defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_OCR_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, true: Callable[[], bool], seconds: float, every: float = 0.05) -> float:
    """Wait until `true()`; the seconds it took. Fails, naming `what`, when it takes too long."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(every)
    return time.monotonic() - started


class Server:
    """A running server. `stop` ends it and every process below it."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        own = {"DATABASE_URL": f"sqlite:///{log.parent}/batches.db", "STORAGE_URL": str(log.parent / "files")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command("--host", "127.0.0.1", "--port", str(self.port), *flags),
                cwd=ROOT,
                env=environment() | {f"DEEPSEEK_OCR_{name}": value for name, value in own.items()},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._family: set[psutil.Process] = set()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def health(self) -> httpx.Response | None:
        """The answer of /health; None while nothing answers there."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5)
        except httpx.TransportError:
            return None

    def wait_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}; its log:\n{self.log}")
            answer = self.health()
            return answer is not None and answer.status_code == 200

        try:
            wait_until("the server is ready", ready, START_SECONDS, every=0.25)
        except AssertionError as error:
            raise AssertionError(f"{error}\nIts log:\n{self.log}") from None
        self.family()

    def family(self) -> set[psutil.Process]:
        """Every process that the server was seen to have started, direct or not."""
        self._family.update(descendants(self.process.pid))
        return self._family

    def orphans(self) -> list[psutil.Process]:
        """Those of them that still run."""
        return [child for child in self._family if lives(child)]

    def stop(self) -> None:
        self.family()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        for child in self.orphans():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    # What the engine is doing, by vLLM's own gauges

    def gauge(self, name: str) -> float:
        """The sum of a gauge over its labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"/metrics has no {name}"
        return sum(map(float, values))

    def at_work(self) -> float:
        """Requests that the engine computes or keeps waiting."""
        return self.gauge("vllm:num_requests_running") + self.gauge("vllm:num_requests_waiting")

    def wait_idle(self, seconds: float = 8.0) -> float:
        """Wait until the engine has nothing to do; the seconds it took."""
        return wait_until("the engine is idle", lambda: self.at_work() == 0, seconds)

    def wait_busy(self, requests: int = 1, seconds: float = 15.0) -> float:
        """Wait until the engine works on that many requests at least."""
        return wait_until(f"the engine works on {requests}", lambda: self.at_work() >= requests, seconds)


@contextlib.contextmanager
def running(log: Path, *flags: str) -> Iterator[Server]:
    server = Server(log, *flags)
    try:
        yield server
    finally:
        server.stop()
