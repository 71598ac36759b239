"""Throughput, latency and CPU time of whole servers: ours and vLLM's, both with the same checkpoint.

Both servers run at the same time and receive requests alternately, so that each has the machine to itself while it
answers.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import load
from bench.compare import Row, Series, compared
from bench.images import encoded, page
from bench.load import Report, body
from bench.processes import Server, ours, running, vllms
from nano.render import Sheet, render

TINY: dict[str, Any] = {"mm_processor_kwargs": {"mode": "tiny"}}
"""The request parameter that selects the tiny mode in vLLM's server, as the model name does in ours."""
PROMPT = "Free OCR."


def run(quick: bool) -> list[Row]:
    folder = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        mine = stack.enter_context(running(ours(folder / "ours.log")))
        plain = stack.enter_context(running(vllms(folder / "vllm.log")))
        return [*_throughput(mine, plain, quick), *_short(mine, plain, quick), *_streams(mine, plain, quick)]


def small_pages(count: int) -> list[bytes]:
    """Return pages of 640 × 640 pixels as PNG files."""
    return [encoded(render(Sheet(clean=True), random.Random(number)).image, "PNG") for number in range(count)]


Bodies = Sequence[dict[str, Any]]


def load_server(server: Server, bodies: Bodies, *, requests: int, clients: int) -> Report:
    """Send requests to a server.

    Raises:
        RuntimeError: a request failed.
    """
    report = asyncio.run(load.run(server.url, bodies, requests=requests, clients=clients))
    if len(report.done) != requests:
        raise RuntimeError("\n".join(report.lines()))
    return report


@dataclass(frozen=True)
class Run:
    """The measurements of one server in one round."""

    report: Report
    cpu: float
    """CPU seconds used by the API process and by the processes that prepare pages."""


Runs = tuple[list[Run], list[Run]]


def in_turn(
    mine: tuple[Server, Bodies], other: tuple[Server, Bodies], *, requests: int, clients: int, rounds: int
) -> Runs:
    """Load both servers alternately and return the runs of each. One more round is run first and discarded."""
    runs: Runs = ([], [])
    for number in range(rounds + 1):
        for (server, bodies), kept in zip((mine, other), runs, strict=True):
            before = server.cpu_seconds()
            report = load_server(server, bodies, requests=requests, clients=clients)
            if number:
                kept.append(Run(report, server.cpu_seconds() - before))
    return runs


def series_of(runs: Runs, figure: Callable[[Run], float]) -> tuple[Series, Series]:
    """Return a figure of the runs of each server."""
    mine, other = (Series([figure(run) for run in each]) for each in runs)
    return mine, other


def cpu_per_page(run: Run) -> float:
    """Return the CPU seconds per page."""
    return run.cpu / len(run.report.done)


def first_text(run: Run, percent: float) -> float:
    return run.report.first_text(percent)


def whole_answer(run: Run, percent: float) -> float:
    return run.report.whole(percent)


def _throughput(mine: Server, plain: Server, quick: bool) -> list[Row]:
    """Compare pages per second and latencies of streamed answers, by the number of clients."""
    pages = small_pages(4 if quick else 16)
    bodies = [body(each, prompt=PROMPT, stream=True) for each in pages]
    rows = []
    for clients in (1, 4) if quick else (1, 8, 32, 100):
        runs = in_turn(
            (mine, bodies),
            (plain, bodies),
            requests=clients if quick else max(24, clients),
            clients=clients,
            rounds=1 if quick else 3,
        )
        figures: dict[str, Callable[[Run], float]] = {"": lambda run: run.report.pages_per_second}
        for percent in (50, 95, 99):
            figures |= {
                f": first text, p{percent}": partial(first_text, percent=percent),
                f": whole answer, p{percent}": partial(whole_answer, percent=percent),
            }
        for name, figure in figures.items():
            rows.append(
                compared(
                    f"{clients} client{'s' if clients > 1 else ''}, streams{name}",
                    "s" if name else "pages/s",
                    series_of(runs, figure),
                    compared_with="vLLM's server, same plugin",
                    at_least=None if name else 1,
                    at_most=1 if name.endswith("p99") else None,
                )
            )
    return rows


def _short(mine: Server, plain: Server, quick: bool) -> list[Row]:
    """Compare requests for one token of a large image in the smallest mode, which need little work of the engine."""
    files = [encoded(page(number), "PNG") for number in range(2 if quick else 8)]
    runs = in_turn(
        (mine, [body(file, model="deepseek-ocr:tiny", max_tokens=1) for file in files]),
        (plain, [body(file, max_tokens=1, **TINY) for file in files]),
        requests=2 if quick else 48,
        clients=8,
        rounds=1 if quick else 3,
    )
    return [
        compared(
            "1700×2200 PNG, tiny mode, one token, 8 clients",
            "pages/s",
            series_of(runs, lambda run: run.report.pages_per_second),
            compared_with="vLLM's server, same plugin",
            at_least=1.3,
        )
    ]


def _streams(mine: Server, plain: Server, quick: bool) -> list[Row]:
    """Compare the CPU time of the API process per streamed token, without the cost of the page itself."""
    (file,) = small_pages(1)
    length = 64 if quick else 400
    rows = []
    for clients in (4,) if quick else (16, 100):

        def bodies(length: int, **more: Any) -> Bodies:
            model = "deepseek-ocr" if more else "deepseek-ocr:tiny"
            return [body(file, model=model, stream=True, max_tokens=length, ignore_eos=True, **more)]

        costs: list[Series] = []
        for tokens in (1, length):
            runs = in_turn(
                (mine, bodies(tokens)),
                (plain, bodies(tokens, **TINY)),
                requests=clients,
                clients=clients,
                rounds=1 if quick else 3,
            )
            costs += series_of(runs, cpu_per_page)
        mine_cost, plain_cost = (
            Series([(long - statistics.median(short.values)) / (length - 1) * 1e6 for long in longer.values])
            for short, longer in ((costs[0], costs[2]), (costs[1], costs[3]))
        )
        rows.append(
            compared(
                f"API process, CPU for a streamed token, {clients} streams",
                "µs",
                (mine_cost, plain_cost),
                compared_with="vLLM's server, same plugin",
                at_most=0.4,
            )
        )
    return rows
