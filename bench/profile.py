"""Profile the API process while many answers are streamed: time by package, compared with vLLM's server.

Only threads that hold the GIL are sampled. Time in the kernel, most of which is spent on sending, is not included.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.compare import Row, Series
from bench.load import body
from bench.processes import ROOT, Server, ours, running, vllms
from bench.servers import TINY, Bodies, load_server, small_pages

CLIENTS = 16
SAMPLES_PER_SECOND = 200
LEAST_SHARE = 0.02
"""Packages with a smaller share of the time of both servers are added up in one row."""
REST = "the rest"
SHARED = "vLLM's handler of the engine's outputs"
"""The name for what both servers have in common: vLLM's tasks that receive the engine's outputs and pass them on."""
SHARED_FRAMES = ("output_handler (", "process_outputs_socket (")
"""Stack frames by which these tasks are recognized."""


def run(quick: bool) -> list[Row]:
    folder = Path(tempfile.mkdtemp())
    length = 64 if quick else 1000
    (file,) = small_pages(1)
    options: dict[str, Any] = {"stream": True, "max_tokens": length, "ignore_eos": True}
    with ExitStack() as stack:
        mine = stack.enter_context(running(ours(folder / "ours.log")))
        plain = stack.enter_context(running(vllms(folder / "vllm.log")))
        found = [
            microseconds(server, [body(file, **options, **more)], folder / f"{number}.txt", length)
            for number, (server, more) in enumerate(((mine, {"model": "deepseek-ocr:tiny"}), (plain, TINY)))
        ]
    totals = [sum(each.values()) for each in found]
    names = {
        name for each, total in zip(found, totals, strict=True) for name in each if each[name] > LEAST_SHARE * total
    }
    for each, total in zip(found, totals, strict=True):
        each[REST] = total - sum(each[name] for name in names)
    return [
        row(f"{CLIENTS} streams, per token: {name}", found[0][name], found[1][name])
        for name in [*sorted(names, key=lambda name: -found[0][name]), REST]
    ]


def row(part: str, mine: float, other: float) -> Row:
    """Return a row without a target."""
    return Row(part, "µs", Series([mine]), Series([other]), "vLLM's server, same plugin", "")


def microseconds(server: Server, bodies: Bodies, samples: Path, length: int) -> Counter[str]:
    """Return the CPU time of the API process per token in microseconds, by package.

    Args:
        server: the server to profile.
        bodies: the requests.
        samples: file for the samples of py-spy.
        length: number of tokens in each answer.
    """
    load_server(server, bodies, requests=CLIENTS, clients=CLIENTS)
    py_spy = Path(sys.executable).with_name("py-spy")
    command = [str(py_spy), "record", "--nonblocking", "--gil", "--full-filenames", "--rate", str(SAMPLES_PER_SECOND)]
    recorder = subprocess.Popen(
        [*command, "--pid", str(server.pid), "--format", "raw", "--output", str(samples)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = server.cpu_seconds()
    load_server(server, bodies, requests=CLIENTS, clients=CLIENTS)
    spent = server.cpu_seconds() - before
    recorder.send_signal(signal.SIGINT)
    recorder.wait(60)
    seen = by_package(samples.read_text().splitlines())
    return Counter({name: spent * count / seen.total() / (CLIENTS * length) * 1e6 for name, count in seen.items()})


def by_package(lines: Iterable[str]) -> Counter[str]:
    """Count samples by the package of the innermost frame, or as `SHARED`.

    Args:
        lines: py-spy's raw format, `frame;frame;… count`. A frame is `name (file:line)`.
    """
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        shared = any(frame in stack for frame in SHARED_FRAMES)
        found[SHARED if shared else package(stack.rpartition(";")[2])] += int(count)
    return found


def package(frame: str) -> str:
    """Return the package that a frame belongs to; for the standard library, the name of the module."""
    path = Path(frame.rpartition(" (")[2].rpartition(":")[0])
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1].removesuffix(".py")
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).parts[0].removesuffix(".py")
    folders = [part for part in path.parts if part.startswith("python3")]
    return f"Python: {path.parts[path.parts.index(folders[0]) + 1].removesuffix('.py')}" if folders else "Python"
