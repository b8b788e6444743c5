"""Sources: an address, or several, to one table. Files go into memory; nothing is cached beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapterlab.addresses import HubId, expand, resolve, why_offline
from adapterlab.data.documents import join_lines
from adapterlab.data.folders import files_in
from adapterlab.data.formats import KNOWN, Columns, Parsed, kind_of, named_classes, parse_file
from adapterlab.data.origins import File, Origin
from adapterlab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Table:
    """Rows of one or several files as columns, and where each row came from."""

    columns: Columns
    origin: Origin
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.origin)


def load_table(
    address: str | Sequence[str],
    *,
    encoding: str | None = None,
    drop_ragged: bool = False,
    split: str = "train",
    documents: str | None = None,
) -> Table:
    """Read what an address, a glob, a folder or a list of addresses names, one below the other.

    Args:
        address: see `adapterlab.addresses`.
        encoding: of text files; None detects it, and a note says what was found if it isn't UTF-8.
        drop_ragged: leave out rows that can't be parsed, instead of refusing the file.
        split: of a data set on the Hub whose address names none.
        documents: how a txt's lines make rows, see `join_lines`; None takes each for a row, blank ones too.

    Raises:
        DataError: nothing is there, it can't be read, or the files' columns differ.
    """
    addresses = [address] if isinstance(address, str) else list(address)
    parts: list[tuple[str, Parsed]] = []
    notes: list[str] = []
    for one in addresses:
        found = resolve(one, "data")
        if isinstance(found, HubId):
            parts.append((str(found), _from_hub(found, split)))
        else:
            files, skipped = files_of(found, KNOWN)
            notes += skipped
            for file in files:
                parsed = parse_file(file, encoding, drop_ragged=drop_ragged)
                joins = documents is not None and kind_of(file)[0] == ".txt"
                parts.append((file.name, join_lines(parsed, str(documents)) if joins else parsed))
    if not parts:
        raise DataError("no data address given; give a file, a folder, a glob, hub:ID or package:NAME/PATH")
    first_name, first = parts[0]
    for name, part in parts[1:]:
        if missing := sorted(set(first.columns) ^ set(part.columns)):
            raise DataError(
                f"'{first_name}' and '{name}' are read together but have different columns; "
                f"only one of them has: {', '.join(missing)}."
            )
    columns = {column: [value for _, part in parts for value in part.columns[column]] for column in first.columns}
    label = addresses[0] if len(addresses) == 1 else f"{addresses[0]} and {len(addresses) - 1} more"
    origin = Origin(label, [File(name, part.places, part.unit, part.digest) for name, part in parts])
    return Table(columns, origin, notes + [note for _, part in parts for note in part.notes])


def files_of(path: Path, known: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files that a resolved path stands for (itself, a glob's or a folder's), and notes on those skipped.

    Raises:
        DataError: a folder holds no data file, or several kinds.
    """
    return files_in(path, known) if path.is_dir() else (expand(path), [])


def read_table(address: str | Sequence[str], *, encoding: str | None = None) -> Dataset:
    """Read files of any format, globs, folders and hub:ID[:SPLIT] into a data set (a txt's column is `text`).

    Raises:
        DataError: see `load_table`.
    """
    return to_dataset(load_table(address, encoding=encoding).columns)


def to_dataset(columns: Columns) -> Dataset:
    """Make an in-memory data set; a column that Arrow has no type for (numbers and words mixed) becomes text."""
    import datasets

    def fits(names: Columns) -> bool:
        try:
            datasets.Dataset.from_dict(names)
        except (TypeError, ValueError, OverflowError):
            return False
        return True

    if not fits(columns):
        columns = {
            name: values if fits({name: values}) else [None if value is None else str(value) for value in values]
            for name, values in columns.items()
        }
    return datasets.Dataset.from_dict(columns)


@contextmanager
def bars_only_on_terminal() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of logs and pipes."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _from_hub(hub_id: HubId, split: str) -> Parsed:
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / hub_id.id.replace("/", "___").lower()
    if not cached.is_dir() and (reason := why_offline()):
        raise DataError(_unavailable(hub_id, f"{reason}."))
    split = hub_id.split or split
    try:
        with bars_only_on_terminal():
            dataset = datasets.load_dataset(hub_id.id, hub_id.config, split=split, revision=hub_id.revision)
    except Exception as error:  # many kinds, none of them common to all that can go wrong
        raise DataError(_unavailable(hub_id, f"{type(error).__name__}: {error}")) from error
    return Parsed(named_classes(dataset), range(1, len(dataset) + 1), unit="row")


def _unavailable(hub_id: HubId, reason: str) -> str:
    return (
        f"data set 'hub:{hub_id}' can't be loaded: {reason}\n"
        "Give a file (csv, tsv, jsonl, json, parquet, txt, conll) or package:NAME/PATH, "
        "or hub:ID:SPLIT with a split that the data set has."
    )
