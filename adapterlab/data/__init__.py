"""Data: a recipe's addresses to checked rows under the task's own column names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from adapterlab.data.columns import RowSchema, map_columns
from adapterlab.data.formats import Columns
from adapterlab.data.sources import load_table, read_table, to_dataset
from adapterlab.data.splits import draw, drop_duplicates, keys, size, split_off, take

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataOptions", "Splits", "load_rows", "load_splits", "read_table"]


class DataOptions(Protocol):
    """The keys of a recipe's `data` section that are read here."""

    @property
    def train(self) -> str | list[str]: ...
    @property
    def eval(self) -> float | str: ...
    @property
    def test(self) -> float | str | None: ...
    @property
    def columns(self) -> Mapping[str, str | list[str]]: ...
    @property
    def max_samples(self) -> int | None: ...
    @property
    def bad_rows(self) -> str: ...
    @property
    def encoding(self) -> str | None: ...


@dataclass
class Splits:
    """The rows to train, evaluate and test on, and what was done to get them."""

    train: Dataset
    eval: Dataset
    test: Dataset | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def named(self) -> dict[str, Dataset]:
        """The splits there are, by name."""
        every = {"train": self.train, "eval": self.eval, "test": self.test}
        return {name: rows for name, rows in every.items() if rows is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows in each split."""
        return {name: len(rows) for name, rows in self.named.items()}


def load_splits(data: DataOptions, task: RowSchema, seed: int) -> Splits:
    """Read train, eval and test, or make them: stratified, seeded, no text on two sides.

    Splits are made before `max_samples` is applied, so that eval and test stay the same when it changes.

    Raises:
        DataError: a file or column is missing, rows can't be used, or there are too few.
    """
    train, notes = _read(data.train, data, task, split="train")
    given: dict[str, Columns] = {}
    shares: dict[str, float] = {}
    for name, value in (("test", data.test), ("eval", data.eval)):
        if isinstance(value, str):
            given[name], more = _read(value, data, task, split="validation" if name == "eval" else name)
            notes += more
        elif value is not None:
            shares[name] = value
    if shares:
        train, note = drop_duplicates(train, task.inputs, task.strata)
        notes += [note] if note else []
        train, made = split_off(train, shares, task.strata, seed)
        given |= made
    notes += _overlaps({"train": train, **given}, task.inputs)
    if data.max_samples is not None and data.max_samples < size(train):
        before = size(train)
        strata = train[task.strata] if task.strata else None
        chosen, _ = draw(strata, range(before), before - data.max_samples, seed)
        train = take(train, chosen)
        notes.append(f"data.max_samples: {len(chosen):,} of {before:,} training rows taken (seed {seed}).")
    made_of = {name: to_dataset(rows) for name, rows in given.items()}
    return Splits(to_dataset(train), made_of["eval"], made_of.get("test"), list(dict.fromkeys(notes)))


def load_rows(
    address: str | Sequence[str], data: DataOptions, task: RowSchema, *, needed: Sequence[str] | None = None
) -> tuple[Dataset, list[str]]:
    """Read further rows (to evaluate on, say) as the recipe reads its own; `needed` columns only, or all.

    Raises:
        DataError: as for `load_splits`.
    """
    columns, notes = _read(address, data, task, split="test", needed=needed)
    return to_dataset(columns), notes


def _read(
    address: str | Sequence[str],
    data: DataOptions,
    task: RowSchema,
    *,
    split: str,
    needed: Sequence[str] | None = None,
) -> tuple[Columns, list[str]]:
    drop = data.bad_rows == "drop"
    table = load_table(address, encoding=data.encoding, drop_ragged=drop, split=split)
    columns, notes = map_columns(table, task, data.columns, bad_rows=data.bad_rows, needed=needed)
    return columns, [*table.notes, *notes]


def _overlaps(splits: dict[str, Columns], inputs: Sequence[str]) -> list[str]:
    """Warn of rows that files have in common: scores on them say nothing about new text."""
    found = {name: set(keys(columns, inputs)) for name, columns in splits.items()}
    notes = []
    for name in ("eval", "test"):
        if shared := len(found.get(name, set()) & found["train"]):
            notes.append(
                f"{shared:,} of the {len(found[name]):,} different rows of {name} are also in train: "
                "its scores flatter."
            )
    return notes
