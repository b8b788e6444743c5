"""Row 10: adapters in the upper half of MiniLM, the lower half cached, against adapters in all layers (row 4's run)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.reviews import ours, rows

CONTENDERS = ("ours", "all layers")
UPPER = [3, 4, 5]  # of six
SETTINGS: dict[str, Any] = {"train_rows": None, "test_rows": None, "epochs": 2, "lr": 1e-3}
QUICK: dict[str, Any] = {"train_rows": 640, "test_rows": 320}


def trial(contender: str, seed: int, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Train two epochs; `later` is the seconds of the second."""
    train, test = rows(settings, cache)
    upper = {"adapter": {"layers": UPPER}, "optim": {"cache_lower_layers": True}}
    found = ours(train, test, settings, seed, **(upper if contender == "ours" else {}))
    first, second = found["curve"]
    return {**found, "later": second["seconds"] - first["seconds"]}
