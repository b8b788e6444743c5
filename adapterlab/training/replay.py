"""Replay: general text among the domain's, so that it isn't forgotten; some is held out, to see whether it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from adapterlab.data import load_splits
from adapterlab.errors import ConfigError, DataError
from adapterlab.recipe import Recipe
from adapterlab.tasks import Task
from adapterlab.tasks.corpus import OF_GENERAL
from adapterlab.tasks.metrics_language import GENERAL


class General:
    """The general text of a recipe's `data.replay`.

    Args:
        recipe: the recipe, with `data.replay`.
        task: one that learns from raw text; it measures the general perplexity from now on.

    Raises:
        ConfigError: the task is another.
        DataError: the text can't be read.
    """

    def __init__(self, recipe: Recipe, task: Task) -> None:
        replay: Any = recipe.data.replay
        if not task.raw_text:
            raise ConfigError(f"data.replay: it is for tasks that learn from raw text, and {task.type} doesn't.")
        fields = {"train": replay.train, "eval": replay.eval, "test": None, "columns": replay.columns}
        data = recipe.data.model_copy(update={**fields, "max_samples": None})
        try:
            self.splits = load_splits(data, task, recipe.run.seed)
        except DataError as error:  # its remedies are keys of the domain's text
            said = re.sub(r"\bdata\.(eval|columns)\b", r"data.replay.\1", str(error))
            raise DataError(f"data.replay: {said}") from error
        self.share, self.seed = replay.share, recipe.run.seed
        if GENERAL not in task.metrics:
            task.metrics.append(GENERAL)

    def encode(
        self, task: Task, tokenizer: Any, max_length: int, names: Sequence[str] = ("train", "eval")
    ) -> dict[str, Any]:
        """Return the general blocks, to train on and held out."""
        told = list(task.notes)
        try:
            rows = {name: task.encode(self.splits.named[name], tokenizer, max_length, name=name) for name in names}
        except DataError as error:
            raise DataError(f"data.replay: {error}") from None
        task.notes = told  # which would be taken for notes on the domain's text
        return rows

    def join(self, rows: dict[str, Any], general: dict[str, Any], task: Task) -> dict[str, Any]:
        """Mix the share of general blocks into those to train on, and put the held-out ones behind the domain's."""
        joined = {name: _marked(part, general["eval"]) if name != "train" else part for name, part in rows.items()}
        if self.share and "train" in rows:
            joined["train"] = self._mixed(rows["train"], general["train"], task)
        return joined

    def _mixed(self, domain: Any, general: Any, task: Task) -> Any:
        if not isinstance(domain, Dataset):
            from adapterlab.tasks.streamed import Mixed

            task.note(f"Replay: {self.share:.0%} of the blocks are of general text.")
            return Mixed(domain, general, self.share)
        wanted = round(len(domain) * self.share / (1 - self.share))
        taken = general.shuffle(seed=self.seed).select(range(min(wanted, len(general))))
        share = len(taken) / (len(taken) + len(domain))
        short = "" if len(taken) == wanted else f", for {self.share:.0%} there isn't enough"
        task.note(f"Replay: {len(taken):,} blocks of general text among {len(domain):,} ({share:.0%}{short}).")
        return concatenate_datasets([domain, taken])


def _marked(domain: Dataset, general: Dataset) -> Dataset:
    parts = [(domain, False), (general, True)]
    return concatenate_datasets([part.add_column(OF_GENERAL, [mark] * len(part)) for part, mark in parts])
