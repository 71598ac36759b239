"""Average checkpoints.

    python -m nano.average runs/mean 0.6 runs/more/checkpoint 0.4 nano/checkpoint

Runs that began with the same weights have averages that often read better than any of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from nano.packages import require_packages

if __name__ == "__main__":  # before the imports below, which take seconds
    require_packages(
        "python -m nano.average", "torch", "numpy", "pillow", "rapidfuzz", "safetensors", "tokenizers", "tqdm"
    )

from nano.model import NanoOcr, load
from nano.train import export


def average(parts: Iterable[tuple[float, Path]]) -> NanoOcr:
    """The mean of the weights in folders of checkpoints, each with how much it counts."""
    models = [(share, load(folder)) for share, folder in parts]
    whole = sum(share for share, _ in models)
    states = [(share / whole, model.state_dict()) for share, model in models]
    mean = models[0][1]
    mean.load_state_dict({name: sum(share * state[name] for share, state in states) for name in mean.state_dict()})
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the average")
    parser.add_argument("parts", nargs="+", metavar="share checkpoint", help="how much it counts, and its folder")
    options = parser.parse_args()
    try:
        shares = [float(share) for share in options.parts[::2]]
        parts = list(zip(shares, map(Path, options.parts[1::2]), strict=True))
    except ValueError as error:
        parser.error(f"shares and checkpoints have to take turns, as in 0.6 one 0.4 other ({error})")
    export(average(parts), options.out)


if __name__ == "__main__":
    main()
