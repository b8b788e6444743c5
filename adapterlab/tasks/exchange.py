"""What passes between a task and the rest: a model's outputs, report tables, and what an adapter has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits


@dataclass(frozen=True)
class Predictions:
    """What a model gave for rows: `outputs` as `Task.outputs` names them, a row (or padded row) for each of `encoded`.

    `encoded` is what `Task.encode` made of `rows`; where it makes several of one row, or drops some, its column
    `_row` says whose they are.
    """

    outputs: Any
    encoded: Dataset
    rows: Dataset


@dataclass(frozen=True)
class ReportTable:
    """A table of the report beside the metrics."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    said: str = ""  # a sentence above it


class Evidence(Protocol):
    """What a task may compare its adapter with: the untouched backbone on the same rows."""

    @property
    def splits(self) -> Splits:
        """The rows."""

    @property
    def split(self) -> str:
        """Which of them are measured on: "test" or "eval"."""

    def encoded(self, split: str, limit: int | None = None) -> Dataset:
        """Return encoded rows; of more than `limit`, a seeded draw."""

    def features(self, encoded: Dataset) -> Any:
        """Return the mean of the untouched backbone's last hidden states for each encoded row."""

    def untouched(self) -> Predictions:
        """Return what the model gives with its adapter disabled."""
