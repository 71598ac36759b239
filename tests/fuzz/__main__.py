"""python -m tests.fuzz TARGET [--runs N] [--seconds S]: ends with status 0 if no case broke the target's promises.

The last line is `TARGET: N cases in S s`. A case that breaks something is printed and left in the folder that is named.
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
    options = argparse.ArgumentParser(prog="python -m tests.fuzz")
    options.add_argument("target", choices=TARGETS)
    options.add_argument("--runs", type=int, default=10_000, help="cases")
    options.add_argument("--seconds", type=int, default=0, help="at most; 0 for no limit")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of much that it then gets over
    with atheris.instrument_imports(include=["ocr_server"]):
        from tests.fuzz import targets
    one_case = getattr(targets, chosen.target)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{chosen.target}-"))
    (folder / "seeds").mkdir()
    seeds = targets.SEEDS[chosen.target]()
    for number, seed in enumerate(seeds):
        (folder / "seeds" / str(number)).write_bytes(seed)
    cases, started = 0, time.monotonic()

    def counted(data: bytes) -> None:
        nonlocal cases
        cases += 1
        one_case(data)
        if cases == chosen.runs:  # libFuzzer ends the process, so this is the place for the last word
            print(f"{chosen.target}: {cases} cases in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            os._exit(0)

    arguments = [f"-max_total_time={chosen.seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=4096"]
    arguments += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "seeds")], counted)
    atheris.Fuzz()


main()
