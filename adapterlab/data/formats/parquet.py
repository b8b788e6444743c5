"""Parquet, and Arrow data sets whose class numbers have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterlab.data.formats.parsed import Columns, Parsed
from adapterlab.errors import DataError


def parse_parquet(content: bytes, path: Path) -> Parsed:
    """Read a file's rows."""
    import datasets
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException as error:
        raise DataError(f"'{path}' is no readable Parquet file: {error}") from error
    columns = named_classes(datasets.Dataset(table))
    return Parsed(columns, range(1, table.num_rows + 1), unit="row")


def named_classes(dataset: Any) -> Columns:
    """Return a `datasets.Dataset` as lists; class numbers become the class's names, -1 becomes None."""
    import datasets

    columns: Columns = dataset[:]
    for name, feature in dataset.features.items():
        inner = getattr(feature, "feature", None)  # of a list: a tag for every token
        if isinstance(feature, datasets.ClassLabel):
            columns[name] = [_named(value, feature) for value in columns[name]]
        elif isinstance(inner, datasets.ClassLabel):
            columns[name] = [
                None if values is None else [_named(value, inner) for value in values] for values in columns[name]
            ]
    return columns


def _named(value: int | None, feature: Any) -> str | None:
    return None if value is None or value < 0 else feature.int2str(value)
