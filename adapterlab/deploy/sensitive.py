"""Find the modules that int8 hurts most, and keep as few of them in fp32 as a limit on the metric asks for."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from adapterlab.errors import ConfigError
from adapterlab.predicting import Predictor
from adapterlab.serving.quantizing import Place, converted, left_out, places, put, quantize
from adapterlab.tasks.metrics import METRICS

SAMPLE = 64  # rows on which each module is tried out by itself


def what_to_skip(
    predictor: Predictor,
    model: Any,
    rows: tuple[Dataset, Dataset],
    skip: Sequence[str],
    max_drop: float,
    notes: list[str],
) -> list[str]:
    """Return the modules to leave in fp32 so that the task's first metric loses no more than `max_drop`.

    Each module is quantized by itself, on a few rows, and ranked by how far that moves the outputs. Of this order as
    many stay in fp32 as are needed: 1, 2, 4, ... and then the fewest that are enough.

    Args:
        predictor: whose task and tokenizer are used.
        model: to be quantized, merged; it stays as it is.
        rows: to measure on, encoded and as they are.
        skip: what stays in fp32 anyway.
        max_drop: points of a metric that is a share, else per cent.
        notes: gets a line on what was found.

    Raises:
        ConfigError: the limit can't be kept, or the task has no metric.
    """
    if not predictor.task.metrics:
        raise ConfigError("max_drop needs a metric, and the run's task has none. Leave it out.")
    tester, ranked = copy.copy(predictor), list[str]()
    metric = predictor.task.metrics[0]

    def score(candidate: Any) -> float:
        tester.model = candidate
        return tester.task.measure(tester.run_encoded(*rows, 64))[metric]

    before = score(model)

    @cache
    def drop(count: int) -> float:
        """Return what is lost with the first so many of `ranked` in fp32."""
        lost = before - score(quantize(copy.deepcopy(model), skip=[*skip, *ranked[:count]]))
        lost = lost if predictor.task.higher_is_better(metric) else -lost
        is_share = metric not in METRICS or METRICS.get(metric).is_share
        found = 100 * (lost if is_share else lost / (abs(before) or 1.0))
        return math.inf if math.isnan(found) else found

    notes.append(
        f"On {len(rows[1]):,} eval rows, int8 throughout loses {drop(0):.2f} of {metric} (limit {max_drop:g})."
    )
    if drop(0) <= max_drop:
        return []
    ranked += _ranked(tester, model, rows, skip)
    count = 1
    while drop(count) > max_drop:
        if count >= len(ranked):
            raise ConfigError(
                f"max_drop: with all {len(ranked)} modules but the embeddings in fp32, {metric} still loses "
                f"{drop(count):.2f}."
            )
        count = min(2 * count, len(ranked))
    fewest = count // 2
    while count - fewest > 1:  # between what isn't enough and what is
        middle = (count + fewest) // 2
        if drop(middle) > max_drop:
            fewest = middle
        else:
            count = middle
    notes.append(f"With {count} of {len(ranked)} modules in fp32 it loses {drop(count):.2f}.")
    return ranked[:count]


def _ranked(tester: Predictor, model: Any, rows: tuple[Dataset, Dataset], skip: Sequence[str]) -> list[str]:
    """Return the paths of all modules, those that move the outputs furthest first."""
    few = rows[1].select(range(min(SAMPLE, len(rows[1]))))
    sample = tester.encode(few, "test"), few
    every = places(model)
    kept = left_out([place.path for place in every], skip)
    tester.model = model
    before = _numbers(tester, sample)
    moved: dict[str, float] = {}
    for place in every:
        if place.path not in kept and not isinstance(place.module, torch.nn.Embedding):
            moved[place.path] = _moved(tester, model, place, sample, before)
    return sorted(moved, key=lambda path: -moved[path])


def _moved(
    tester: Predictor, model: Any, place: Place, sample: tuple[Dataset, Dataset], before: np.ndarray[Any, Any]
) -> float:
    put(model, place.path, converted([place])[place.path])
    try:
        return float(np.abs(_numbers(tester, sample) - before).mean())
    finally:
        put(model, place.path, place.module)


def _numbers(tester: Predictor, sample: tuple[Dataset, Dataset]) -> np.ndarray[Any, Any]:
    parts = tester.task.numbers(tester.run_encoded(*sample, 64).outputs)
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])
