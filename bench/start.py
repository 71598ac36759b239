"""The time from starting a server to its first answer."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import load
from bench.compare import Row, Series, compared
from bench.load import body
from bench.processes import Server, ours, running, vllms
from bench.servers import small_pages


def run(quick: bool) -> list[Row]:
    log = Path(tempfile.mkdtemp()) / "server.log"
    (file,) = small_pages(1)
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(1 if quick else 4):
        for make, values in zip((ours, vllms), figures, strict=True):
            seconds = first_answer(make, log, file)
            if number or quick:  # the first start fills the caches of the file system
                values.append(seconds)
    return [
        compared(
            "from start to first answer, second start",
            "s",
            (Series(figures[0]), Series(figures[1])),
            compared_with="vLLM's server, same plugin",
        )
    ]


def first_answer(make: Callable[[Path], Server], log: Path, file: bytes) -> float:
    """Start a server, and return the seconds until it has answered a request.

    Raises:
        RuntimeError: the request failed.
    """
    with running(make(log)) as server:
        report = asyncio.run(load.run(server.url, [body(file, max_tokens=1)], requests=1, clients=1))
        if not report.done:
            raise RuntimeError("\n".join(report.lines()))
        return time.perf_counter() - server.started
