"""CPU time and memory of the API process, compared with vLLM's server with its own preprocessing of images.

Both servers run at the same time and receive requests alternately, as in `bench/servers.py`.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.compare import Row, Series, compared, scaled
from bench.images import encoded, page
from bench.load import body
from bench.processes import Server, ours, running, vllms
from bench.servers import cpu_per_page, in_turn, load_server, series_of


def run(quick: bool) -> list[Row]:
    folder = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        mine = stack.enter_context(running(ours(folder / "ours.log")))
        in_tree = stack.enter_context(running(vllms(folder / "in-tree.log", in_tree=True)))
        return [*_cpu_per_page(mine, in_tree, quick), *_memory(mine, in_tree, quick)]


def _cpu_per_page(mine: Server, in_tree: Server, quick: bool) -> list[Row]:
    files = [encoded(page(number), "PNG") for number in range(2 if quick else 6)]
    bodies = [body(file, max_tokens=1) for file in files]
    runs = in_turn(
        (mine, bodies),
        (in_tree, bodies),
        requests=2 if quick else 12,
        clients=2,
        rounds=1 if quick else 5,
    )
    return [
        compared(
            "API process, CPU time per page: 1700×2200 PNG, base64, JSON",
            "ms",
            scaled(series_of(runs, cpu_per_page), 1000),
            compared_with="vLLM's server, its own preprocessing",
            at_most=0.5,
            note="includes the worker processes that decode pages",
        )
    ]


def _memory(mine: Server, in_tree: Server, quick: bool) -> list[Row]:
    """Measure by how much the memory of the API process grows while many pages are requested at once."""
    clients = 4 if quick else 100
    bodies = [body(encoded(page(number), "PNG"), max_tokens=1) for number in range(2 if quick else 6)]
    growth = []
    for server in (mine, in_tree):
        with server.watching_memory() as memory:
            load_server(server, bodies, requests=clients, clients=clients)
        growth.append(Series([(max(memory) - memory[0]) / 1e6]))
    return [
        compared(
            f"API process, memory added by {clients} concurrent pages",
            "MB",
            (growth[0], growth[1]),
            compared_with="vLLM's server, its own preprocessing",
        )
    ]
