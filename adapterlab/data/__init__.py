"""Data: a recipe's addresses to checked rows under the task's own column names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from adapterlab.data.columns import Rows, RowSchema, map_columns
from adapterlab.data.corpora import Corpus
from adapterlab.data.formats import some
from adapterlab.data.labels import map_labels
from adapterlab.data.overlaps import settle_overlaps
from adapterlab.data.record import compare, record_of
from adapterlab.data.sources import load_table, read_table, to_dataset
from adapterlab.data.splits import draw, drop_duplicates, split_off
from adapterlab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Corpus", "DataOptions", "Splits", "load_rows", "load_splits", "read_table"]


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
    def label_map(self) -> Mapping[str, str]: ...
    @property
    def group_by(self) -> str | None: ...
    @property
    def max_samples(self) -> int | None: ...
    @property
    def bad_rows(self) -> str: ...
    @property
    def deduplicate(self) -> bool: ...
    @property
    def overlap(self) -> str: ...
    @property
    def encoding(self) -> str | None: ...
    @property
    def streaming(self) -> bool: ...


@dataclass
class Splits:
    """The rows to train, evaluate and test on, and what was done to get them."""

    train: Dataset  # a Corpus where it is streamed, for tasks that read raw text
    eval: Dataset
    test: Dataset | None = None
    notes: list[str] = field(default_factory=list)
    origins: dict[str, Rows] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Dataset]:
        """The splits there are, by name."""
        every = {"train": self.train, "eval": self.eval, "test": self.test}
        return {name: rows for name, rows in every.items() if rows is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows in each split; a streamed one's aren't known."""
        return {name: len(rows) for name, rows in self.named.items() if not isinstance(rows, Corpus)}

    def locate(self, name: str, rows: Sequence[int]) -> str:
        """Say in which lines of which files some rows of a split stand; where that isn't known, which rows they are."""
        if name in self.origins:
            return self.origins[name].locate(rows)
        return f"row{'s' if len(rows) > 1 else ''} {some([row + 1 for row in rows])}"

    def record(self) -> dict[str, Any]:
        """Return the rows of each split by file and line, with digests of the rows and files, as JSON can hold it."""
        return record_of(self.origins, self.settings)

    def write(self, path: Path) -> None:
        """Write the record."""
        path.write_text(json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def verify(self, path: Path) -> None:
        """Refuse to go on with other rows than those of a record written before.

        Raises:
            DataError: rows or files have changed; the message names them.
        """
        compare(path, self.record())


def load_splits(data: DataOptions, task: RowSchema, seed: int) -> Splits:
    """Read train, eval and test, or make them: stratified, seeded, in groups, no text on two sides.

    Splits are made before `max_samples` is applied, so that eval and test stay the same when it changes.

    Raises:
        DataError: a file or column is missing, rows can't be used, or there are too few.
    """
    if data.streaming:
        return _streamed(data, task, seed)
    given: dict[str, Rows] = {}
    shares: dict[str, float] = {}
    train, notes = _read(data.train, data, task, split="train", group_by=data.group_by)
    for name, value in (("test", data.test), ("eval", data.eval)):
        if isinstance(value, str):
            given[name], more = _read(value, data, task, split="validation" if name == "eval" else name)
            notes += more
        elif value is not None:
            shares[name] = value
    if data.deduplicate:
        for name in given:
            given[name], more = drop_duplicates(given[name], task.inputs, task.strata, f"from {name}")
            notes += more
    if shares or data.deduplicate:
        train, more = drop_duplicates(train, task.inputs, task.strata, "before splitting" if shares else "from train")
        notes += more
    made: dict[str, Rows] = {}
    if shares:
        train, made = split_off(train, shares, task.strata, seed)
    splits, more = settle_overlaps({"train": train, **given, **made}, task.inputs, data.overlap)
    notes += more
    train = splits["train"]
    if data.max_samples is not None and data.max_samples < len(train):
        before = len(train)
        strata = train.columns[task.strata] if task.strata else None
        chosen, _ = draw(strata, range(before), before - data.max_samples, seed)
        splits["train"] = train.take(chosen)
        notes.append(f"data.max_samples: {len(chosen):,} of {before:,} training rows taken (seed {seed}).")
    sets = {name: to_dataset(rows.columns) for name, rows in splits.items()}
    settings = {"seed": seed, "made": shares, "group_by": data.group_by, "max_samples": data.max_samples}
    settings["stratified_by"] = task.strata
    return Splits(sets["train"], sets["eval"], sets.get("test"), list(dict.fromkeys(notes)), splits, settings)


def load_rows(
    address: str | Sequence[str], data: DataOptions, task: RowSchema, *, needed: Sequence[str] | None = None
) -> tuple[Dataset, list[str]]:
    """Read further rows (to evaluate on, say) as the recipe reads its own; `needed` columns only, or all.

    Raises:
        DataError: as for `load_splits`.
    """
    rows, notes = _read(address, data, task, split="test", needed=needed)
    return to_dataset(rows.columns), notes


def _streamed(data: DataOptions, task: RowSchema, seed: int) -> Splits:
    if not task.raw_text:
        raise DataError(
            "data.streaming is for pretraining on raw text; this task takes its rows into memory. Leave it out, and "
            "set data.max_samples if there are too many."
        )
    if not isinstance(data.eval, str) or isinstance(data.test, float):
        raise DataError(
            "data.streaming: train isn't read as a whole, so no share of it can be held out. Give the addresses of "
            "files as data.eval and data.test."
        )
    column = str(data.columns.get("text", "text"))
    train = Corpus(data.train, task, column, data.encoding, data.bad_rows, seed)
    given = {name: address for name, address in (("eval", data.eval), ("test", data.test)) if isinstance(address, str)}
    read = {name: _read(address, data, task, split=name) for name, address in given.items()}
    sets = {name: to_dataset(rows.columns) for name, (rows, _) in read.items()}
    notes = [*train.notes, *(note for _, more in read.values() for note in more)]
    origins = {name: rows for name, (rows, _) in read.items()}
    return Splits(cast(Any, train), sets["eval"], sets.get("test"), list(dict.fromkeys(notes)), origins, {"seed": seed})


def _read(
    address: str | Sequence[str],
    data: DataOptions,
    task: RowSchema,
    *,
    split: str,
    needed: Sequence[str] | None = None,
    group_by: str | None = None,
) -> tuple[Rows, list[str]]:
    drop = data.bad_rows == "drop"
    table = load_table(address, encoding=data.encoding, drop_ragged=drop, split=split, documents=task.documents)
    rows, notes = map_columns(table, task, data.columns, bad_rows=data.bad_rows, needed=needed, group_by=group_by)
    return map_labels(rows, task, data.label_map), [*table.notes, *notes]
