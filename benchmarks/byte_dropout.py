"""Does dropout drawn in bytes learn as torch's does? The same runs with both, many seeds, and their difference.

python -m benchmarks.byte_dropout --seeds 16
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Settings
from benchmarks.training.reviews import recipe, rows

TRIAL: dict[str, Any] = {"train_rows": 1600, "test_rows": 1500, "epochs": 1, "lr": 1e-3}
MEASURES = ("accuracy", "roc_auc")


def run(seed: int, byte_dropout: bool, threads: int, cache: Path) -> dict[str, float]:
    """Train on the first movie-review snippets in batches of 16; return the metrics on all test rows."""
    import torch

    import adapterlab

    torch.set_num_threads(threads)
    train, test = rows(TRIAL, cache)
    with tempfile.TemporaryDirectory() as place:
        written = recipe(Path(place), train, test, TRIAL, seed)
        written["task"]["metrics"] = [*MEASURES]
        written["optim"] |= {"batch_size": 16, "byte_dropout": byte_dropout}
        return dict(adapterlab.run(written).metrics)


def difference(pairs: list[tuple[dict[str, float], dict[str, float]]], measure: str) -> str:
    """Return the mean difference of the pairs, bytes less torch, with its standard error."""
    less = [found[measure] - torch[measure] for found, torch in pairs]
    error = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else math.nan
    both = " and ".join(f"{statistics.mean(one[measure] for one in side):.4f}" for side in zip(*pairs, strict=True))
    lower = sum(value < 0 for value in less)
    return f"{measure}: {both}, difference {statistics.mean(less):+.4f} ± {error:.4f}, lower in {lower} of {len(less)}"


def main() -> None:
    """Run the pairs; after each, print what is known so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Settings().cache)
    options = parser.parse_args()
    pairs = []
    for seed in range(options.first, options.first + options.seeds):
        bytes_, torchs = (run(seed, asked, options.threads, options.cache) for asked in (True, False))
        pairs.append((bytes_, torchs))
        print(f"seed {seed}:", *pairs[-1], flush=True)
        for measure in MEASURES:
            print(f"  bytes and torch, {difference(pairs, measure)}", flush=True)


if __name__ == "__main__":
    main()
