"""What a model lost and won on its way to serving: metrics, changed answers, logits, size, speed; both by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adapterlab.pretrained import room
from adapterlab.tasks import Predictions, Task

SHAPES = ((1, 32), (1, 128), (16, 64))  # batch x tokens
SECONDS = 2.0  # for each shape and side, and not less than FEWEST passes
FEWEST, MOST = 7, 50


@dataclass
class Side:
    """One of two models that are compared."""

    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: int = 0  # bytes
    load: float | None = None  # seconds
    passes: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # seconds of each, by shape

    def latency(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Return the median and the 95th percentile of a pass, in seconds."""
        taken = self.passes[shape]
        return statistics.median(taken), float(np.percentile(taken, 95))


@dataclass(frozen=True)
class Change:
    """A row that is answered otherwise."""

    number: int  # from 1
    row: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Both sides, on the same rows."""

    before: Side
    after: Side
    split: str
    rows: int
    changes: Sequence[Change]
    logits: tuple[float, float] | None  # how far they are apart, mean and most; None where a task keeps none


def logits_apart(before: Predictions, after: Predictions) -> tuple[float, float] | None:
    """Return the mean and the largest difference of what two models gave for the same rows.

    None where that isn't numbers of the same shape: texts that were generated.
    """
    sides = [seen.outputs if isinstance(seen.outputs, tuple) else (seen.outputs,) for seen in (before, after)]
    pairs = list(zip(*sides, strict=True))
    if any(one.shape != other.shape or not np.issubdtype(one.dtype, np.floating) for one, other in pairs):
        return None
    apart = np.concatenate([np.abs(one - other).ravel() for one, other in pairs])
    return float(apart.mean()), float(apart.max())


def changed_answers(task: Task, before: Predictions, after: Predictions) -> list[Change]:
    """Return the rows whose answers differ in more than numbers: another label, another text."""
    rows, sides = before.rows, [task.decode(seen) for seen in (before, after)]
    return [
        Change(number, rows[number - 1], one, other)
        for number, (one, other) in enumerate(zip(*sides, strict=True), start=1)
        if said(one) != said(other)
    ]


def said(answer: Any) -> Any:
    """Return an answer without its numbers (scores, probabilities)."""
    if isinstance(answer, Mapping):
        kept = {key: said(value) for key, value in answer.items() if not isinstance(value, float)}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    return [said(value) for value in answer if not isinstance(value, float)] if isinstance(answer, list) else answer


def weight_bytes(model: Any) -> int:
    """Return how many bytes a model's tensors take, each once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(tensors.values())


def time_passes(sides: Sequence[tuple[Side, Any]], ids: Sequence[int]) -> None:
    """Time forward passes of both models on a text's tokens, by turns, and note them in `Side.passes`.

    A shape that is longer than the models' positions is left out.
    """
    for shape in SHAPES:
        if (room(sides[0][1]) or shape[1]) < shape[1]:
            continue
        steps = [(side, _pass(model, ids, shape)) for side, model in sides]
        for _, step in steps:
            step()  # what is made once
        ended = time.perf_counter() + SECONDS * len(steps)
        taken: dict[str, list[float]] = {side.name: [] for side, _ in steps}
        for number in range(MOST):
            if number >= FEWEST and time.perf_counter() > ended:
                break
            for side, step in steps:
                begun = time.perf_counter()
                step()
                taken[side.name].append(time.perf_counter() - begun)
        for side, _ in steps:
            side.passes[shape] = taken[side.name]


def time_loading(loads: Sequence[tuple[Side, Callable[[], Any]]], times: int = 3) -> None:
    """Time how long each model takes to load, by turns, and note the medians in `Side.load`."""
    taken: dict[str, list[float]] = {side.name: [] for side, _ in loads}
    for _ in range(times):
        for side, load in loads:
            begun = time.perf_counter()
            load()
            taken[side.name].append(time.perf_counter() - begun)
    for side, _ in loads:
        side.load = statistics.median(taken[side.name])


def _pass(model: Any, ids: Sequence[int], shape: tuple[int, int]) -> Callable[[], Any]:
    rows, length = shape
    repeated = (list(ids) * (rows * length // max(len(ids), 1) + 1))[: rows * length]
    tokens = torch.tensor(repeated, device=model.device).view(rows, length)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = tokens[:, :1]

    def run() -> Any:
        with torch.inference_mode():
            return model(**batch)

    return run
