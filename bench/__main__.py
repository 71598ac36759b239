"""Compare this server with vLLM's own, part by part, and write bench/RESULTS.md.

python -m bench                 # all parts, more than an hour
python -m bench images guard    # only these parts; the figures of the others are kept
python -m bench --quick images  # only to check that it runs; writes nothing
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from bench.compare import Row
from nano.packages import require_packages

PARTS = {
    "images": "Images to tensors",
    "guard": "The n-gram guard",
    "servers": "Whole servers",
    "preprocessing": "Whole servers, with vLLM's own preprocessing",
    "profile": "Where the time goes",
    "pdf": "A long PDF",
    "start": "Starting",
    "encoder": "The vision encoder",
}
"""The parts and the headings of their results."""
OUT = Path(__file__).parent
PACKAGES = ("aiohttp", "numpy", "pillow", "psutil", "pypdfium2", "tokenizers", "torch", "tqdm", "transformers", "vllm")
"""The packages that the parts import."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="run few rounds and write nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))} (choose from {', '.join(PARTS)})")
    parts = options.parts or list(PARTS)
    plots = () if options.quick else ("matplotlib",)
    profiler = ("py-spy",) if "profile" in parts else ()
    require_packages("python -m bench", *PACKAGES, *plots, *profiler)
    from bench import report  # imports psutil, which may be missing

    results = OUT / "results.json"
    kept = json.loads(results.read_text()) if results.exists() else {}
    for name in parts:
        print(f"== {PARTS[name]}", flush=True)
        rows: list[Row] = importlib.import_module(f"bench.{name}").run(options.quick)
        for row in rows:
            ratio = "" if row.ratio is None else f"ratio {row.ratio:.3g} "
            print(f"{row.part}: {row.ours.median:.4g} {row.unit} {ratio}{report.MARKS[row.met]}", flush=True)
        if not options.quick:
            kept[name] = report.entry(rows)
            results.write_text(json.dumps(kept, indent=1) + "\n")
            report.write(kept, PARTS, OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
