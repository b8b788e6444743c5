"""Row 4: one epoch on the movie-review snippets; ours, and peft with Trainer as its docs show it and at its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.reviews import ours, rows, through_trainer

CONTENDERS = ("ours", "peft", "peft, best")
SETTINGS: dict[str, Any] = {"train_rows": None, "test_rows": None, "epochs": 1, "lr": 1e-3}
QUICK: dict[str, Any] = {"train_rows": 640, "test_rows": 320}


def trial(contender: str, seed: int, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Train one epoch; return the seconds of the loop and the accuracy on the test rows."""
    train, test = rows(settings, cache)
    if contender == "ours":
        return ours(train, test, settings, seed)
    return through_trainer(train, test, settings | {"peft": True, "best": contender == "peft, best"}, seed)
