"""What a run's adapter is compared with: the same backbone without it, on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from adapterlab.attaching import disabled
from adapterlab.data import Splits
from adapterlab.features import frozen_features
from adapterlab.tasks import Predictions, Task
from adapterlab.training.trainer import TaskTrainer


@dataclass(frozen=True)
class RunEvidence:
    """The evidence of one run, which `Task.baselines` asks for as it needs it."""

    task: Task
    trainer: TaskTrainer
    tokenizer: Any
    splits: Splits
    rows: dict[str, Dataset]  # encoded
    split: str
    seed: int
    plain: Callable[[str], Dataset] | None = None  # encodes a split without the adapter's new tokens

    def encoded(self, split: str, limit: int | None = None) -> Dataset:
        """Return encoded rows; of more than `limit`, a seeded draw."""
        rows = self.rows[split]
        return rows if limit is None or len(rows) <= limit else rows.shuffle(seed=self.seed).select(range(limit))

    def features(self, encoded: Dataset) -> Any:
        """Return a (rows, hidden) array: the mean of the untouched backbone's last hidden states."""
        with disabled(self.trainer.model) as model:
            return frozen_features(model, encoded, self.task.collator(self.tokenizer))

    def untouched(self) -> Predictions:
        """Return what the model gives with its adapter disabled."""
        rows = self.plain(self.split) if self.plain else self.rows[self.split]
        with disabled(self.trainer.model):
            outputs = self.trainer.outputs(rows)
        return Predictions(outputs, rows, self.splits.named[self.split])
