"""Metrics of retrieval: at which rank the text looked for stands."""

from __future__ import annotations

from typing import Any

import numpy as np

from adapterlab.tasks.metrics import MetricSpec, number_metric, register_metric


def _recall(at: int) -> Any:
    return lambda wanted, ranks: float(np.mean(ranks <= at))


def _register(name: str, summary: str, score: Any) -> None:
    build = number_metric(name, summary, score, (0, 0))
    register_metric(MetricSpec(name, summary, build, tasks=("similarity",)))


for _at in (1, 5, 10):
    _register(f"recall@{_at}", f"share of texts whose partner is among the {_at} nearest", _recall(_at))
_register("mrr", "mean reciprocal rank of the partner", lambda wanted, ranks: float(np.mean(1 / ranks)))
