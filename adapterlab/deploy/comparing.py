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
_FILL, _NEVER = -100, 1e30  # what fills up rows in `Predictions`, and the logit of a choice that there isn't


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
    changes: Sequence[Change] | None  # None where answers are numbers
    logits: tuple[float, float, float] | None  # how far apart: mean, most; and the largest; None: can't be compared


def logits_apart(task: Task, before: Predictions, after: Predictions) -> tuple[float, float, float] | None:
    """Return how far apart two models' numbers for the same rows are: mean, most, and the largest number of all.

    None where nothing can be compared. What fills up rows of other lengths (-100, or no choice) doesn't count.
    """
    apart, sizes = [], []
    for one, other in zip(task.numbers(before.outputs), task.numbers(after.outputs), strict=True):
        one, other = (np.asarray(part, dtype=np.float64) for part in (one, other))
        if one.shape != other.shape:
            return None
        real = (one != _FILL) & (other != _FILL) & (np.abs(one) < _NEVER)
        apart.append(np.abs(one - other)[real])
        sizes.append(np.abs(one)[real])
    every, largest = np.concatenate(apart), np.concatenate(sizes)
    return (float(every.mean()), float(every.max()), float(largest.max())) if every.size else None


def changed_answers(task: Task, before: Predictions, after: Predictions) -> list[Change] | None:
    """Return the rows whose answers differ in more than numbers: another label, another text.

    None for tasks whose answers are numbers, and for corpora, which have none.
    """
    if task.raw_text:
        return None
    rows, sides = before.rows, [task.decode(seen) for seen in (before, after)]
    if not any(said(answer) for answer in sides[0]) or len(sides[0]) != len(rows):
        return None
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
    """Time forward passes of both models, but for their heads, on a text's tokens by turns; see `Side.passes`.

    A shape that is longer than the models' positions is left out.
    """
    model = sides[0][1]
    positions = room(model) or getattr(model.config, "max_position_embeddings", None)
    for shape in SHAPES:
        if positions is not None and positions < shape[1]:
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


def _pass(model: Any, ids: Sequence[int], shape: tuple[int, int]) -> Callable[[], None]:
    rows, length = shape
    repeated = (list(ids) * (rows * length // max(len(ids), 1) + 1))[: rows * length]
    tokens = torch.tensor(repeated, device=model.device).view(rows, length)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = tokens[:, :1]

    base = model.base_model  # a head may want other inputs: choices, the texts' ends

    def run() -> None:
        with torch.inference_mode():
            base(**batch)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run
