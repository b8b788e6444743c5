"""What a run will take, before it is run: a few of its steps are measured, the rest is arithmetic."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, TrainerCallback

from adapterlab.pipeline import peak_memory
from adapterlab.preparing import Prepared, prepare
from adapterlab.pretrained import quiet
from adapterlab.recipe import Recipe, load_recipe
from adapterlab.training.callbacks import Narrator
from adapterlab.training.run_folder import RunFolder
from adapterlab.training.trainer import TaskTrainer, build_trainer, by_length, planned_steps, row_count

_WARM = 2  # steps that are run and not counted: allocations, kernels chosen for new shapes
_MEASURED = 8  # steps that are


@dataclass(frozen=True)
class Estimate:
    """What `estimate` gives. Sizes are bytes, times seconds."""

    method: str
    trained: int
    total: int
    steps: int
    step_seconds: float
    training_seconds: float  # all steps and the evaluations between them: what a run's table calls time
    evaluation_seconds: float  # the share of the evaluations in that
    memory: dict[str, int]  # by part
    peak_memory: int  # of the whole process (or on the GPU) while the steps were measured
    adapter_bytes: int
    cache_bytes: int = 0  # on disk, of the lower layers' output


class _Clock(TrainerCallback):
    """Notes when each optimizer step ends, and ends training after so many of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ticks: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.ticks.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())
        control.should_training_stop = len(self.ticks) > self.steps


def estimate(recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str) -> Estimate:
    """Say what a run of the recipe will take: parameters, memory by part, steps, and a duration.

    The data, the backbone and the adapter are loaded as for the run; some of its batches, short ones and long ones, are
    trained on and evaluated, and their times extrapolated. Nothing is written.

    Raises:
        AdapterLabError: as for `run`.
    """
    recipe = load_recipe(recipe, overrides)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Console(quiet=True))
        return _measure(prepared, RunFolder(Path(folder)))


def _measure(prepared: Prepared, folder: RunFolder) -> Estimate:
    recipe, rows = prepared.recipe, prepared.rows
    steps = planned_steps(recipe, row_count(rows["train"]))
    per_step = recipe.optim.batch_size * recipe.optim.accumulate
    train = rows["train"]
    if row_count(train) is None:  # a stream's rows are all of one length: its first ones stand for all
        train = Dataset.from_list([*islice(train, per_step * (_MEASURED + _WARM))])
    sample = _spread_over_lengths(train, per_step, min(_MEASURED, steps))
    chosen = {**rows, "train": sample}
    console = Console(quiet=True)
    trainer = build_trainer(
        recipe, prepared.task, prepared.model, prepared.tokenizer, prepared.splits, chosen, folder,
        Narrator(console, []),
    )  # fmt: skip
    lower, began = prepared.lower, time.perf_counter()
    with prepared.at_speed(trainer, folder.path, console) as states:
        filling = (time.perf_counter() - began) * lower.tokens / states.tokens if lower and states else 0.0
        seconds = _time_steps(trainer, len(sample) // per_step, steps)
        evaluation = _time_evaluation(trainer, rows["eval"], recipe.optim.eval_batch_size)
        weights = sum(p.nbytes for p in prepared.model.parameters() if not p.requires_grad)
    evaluations = _evaluations(recipe, steps)
    state = [p for p in prepared.model.parameters() if p.requires_grad]
    trained = sum(p.numel() * p.element_size() for p in state)
    memory = {"backbone": weights, "adapter and head": trained, "their gradients": trained, "optimizer": 2 * trained}
    peak = peak_memory()
    memory["activations, libraries, data"] = max(0, peak - sum(memory.values()))
    return Estimate(
        method=recipe.adapter.method,
        trained=prepared.counts.trainable,
        total=prepared.counts.total,
        steps=steps,
        step_seconds=seconds,
        training_seconds=filling + steps * seconds + evaluations * evaluation,
        evaluation_seconds=evaluations * evaluation,
        memory=memory,
        peak_memory=peak,
        adapter_bytes=trained,
        cache_bytes=lower.bytes if lower else 0,
    )


def _spread_over_lengths(encoded: Any, size: int, batches: int) -> Any:
    """Return rows for a few warm-up steps and `batches` more, which stand for all lengths alike.

    Training groups rows of about equal length, so a batch here is a run of the rows sorted by length. The warm-up's are
    the longest, which need most memory.
    """
    order = by_length(encoded)
    last = max(0, len(order) - size)
    starts = [round(last * (place + 0.5) / batches) for place in range(batches)]
    taken = [index for start in [*[0] * _WARM, *starts] for index in order[start : start + size]]
    return encoded.select(taken)


def _time_steps(trainer: TaskTrainer, count: int, planned: int) -> float:
    """Train on the sample in its order; return the mean seconds of the counted steps."""
    clock = _Clock(max(1, count))
    trainer.add_callback(clock)
    trainer.remove_callback(EarlyStoppingCallback)
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    trainer.args.max_steps = planned  # schedules are those of the run
    trainer.args.eval_strategy = trainer.args.save_strategy = trainer.args.logging_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.train()
    taken = [after - before for before, after in pairwise(clock.ticks)]
    return statistics.mean(taken[_WARM:] or taken)


def _time_evaluation(trainer: TaskTrainer, encoded: Any, size: int) -> float:
    """Return the seconds that one evaluation of all the rows takes, from a few of its batches."""
    batches = math.ceil(len(encoded) / size)
    sample = _spread_over_lengths(encoded, size, min(4, batches))
    trainer.outputs(sample.select(range(min(len(sample), size))), final=False)
    begun = time.perf_counter()
    trainer.outputs(sample, final=False)
    return (time.perf_counter() - begun) * len(encoded) / len(sample)


def _evaluations(recipe: Recipe, steps: int) -> int:
    if recipe.eval.every is not None:
        return max(1, steps // recipe.eval.every)
    return 1 if recipe.optim.max_steps is not None else math.ceil(recipe.optim.epochs)
