"""Fuzz a target: python -m tests.fuzz TARGET [--runs N] [--seconds S]

The exit status is 0 if no case violated the target's guarantees; the last line is then `TARGET: N cases in S s`. A case
that violates one is printed, and saved in the folder that the output names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

TARGETS = ("grounding", "pdf", "picture", "url")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=10_000, help="number of cases")
    parser.add_argument("--seconds", type=int, default=0, help="time limit; 0 for no limit")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns about many defects that it can handle
    with atheris.instrument_imports(include=["ocr_server"]):
        from tests.fuzz import targets
    run_case = getattr(targets, options.target)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    (folder / "seeds").mkdir()
    seeds = targets.SEEDS[options.target]()
    for number, seed in enumerate(seeds):
        (folder / "seeds" / str(number)).write_bytes(seed)
    cases, started = 0, time.monotonic()

    def count_and_run(data: bytes) -> None:
        nonlocal cases
        cases += 1
        run_case(data)
        if cases == options.runs:  # libFuzzer ends the process itself, so the summary is printed here
            print(f"{options.target}: {cases} cases in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            os._exit(0)

    arguments = [f"-max_total_time={options.seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=4096"]
    arguments += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "seeds")], count_and_run)
    atheris.Fuzz()


main()
