"""Row 4b: training time until the test accuracy is within a point of full fine-tuning's best.

Full fine-tuning trains for three epochs at two rates, measured every few steps with the clock stopped; the best it ever
reaches, less a point, is the target of its seed. Ours and peft stop when they are there. All have a linear schedule
over three epochs. Ours is what the shipped recipe `classify/lora-bert` has: BERT's pooler trained along, no dropout in
the adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.reviews import ours, regression, rows, through_trainer

FULL = {f"full {rate:g}": rate for rate in (5e-5, 1e-4)}
RECIPE = {"dropout": 0.0, "modules_to_save": ["pooler"]}  # of the adapter
SEEDS = (0,)  # three quarters of an hour each
SETTINGS: dict[str, Any] = {"train_rows": None, "test_rows": None, "epochs": 3, "every": 30, "lr": 1e-3, "target": None}
QUICK: dict[str, Any] = {"train_rows": 640, "test_rows": 320, "every": 10}


def trial(contender: str, seed: int, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Train; return the curve of accuracies over the seconds of training."""
    train, test = rows(settings, cache)
    if contender == "logistic regression":
        return regression(train, test, seed)
    if contender == "ours":
        return ours(train, test, settings, seed, adapter=settings["adapter"])
    return through_trainer(train, test, settings | {"peft": contender == "peft", "best": False}, seed)
