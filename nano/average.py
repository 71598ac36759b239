"""Average the weights of several checkpoints.

    python -m nano.average runs/mean 0.6 runs/more/checkpoint 0.4 nano/checkpoint

The average of runs that started from the same weights often reads better than any single one of them.
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
    """Return a model whose weights are the weighted mean of several checkpoints.

    Args:
        parts: pairs of a share and the folder of a checkpoint. The shares need not add up to 1.
    """
    models = [(share, load(folder)) for share, folder in parts]
    total = sum(share for share, _ in models)
    states = [(share / total, model.state_dict()) for share, model in models]
    mean = models[0][1]
    mean.load_state_dict({name: sum(share * state[name] for share, state in states) for name in mean.state_dict()})
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the averaged checkpoint to")
    parser.add_argument(
        "parts", nargs="+", metavar="share checkpoint", help="the share of a checkpoint, and its folder; repeatable"
    )
    options = parser.parse_args()
    try:
        shares = [float(share) for share in options.parts[::2]]
        parts = list(zip(shares, map(Path, options.parts[1::2]), strict=True))
    except ValueError as error:
        parser.error(f"give shares and checkpoints alternately, for example: 0.6 one 0.4 other ({error})")
    export(average(parts), options.out)


if __name__ == "__main__":
    main()
