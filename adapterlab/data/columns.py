"""Columns: a table's columns under the names that a task uses; unusable rows are refused or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from adapterlab.data.formats import Columns
from adapterlab.data.sources import Table
from adapterlab.errors import DataError, did_you_mean


class RowSchema(Protocol):
    """What the data floor needs to know of a task: its columns, and which values can be used."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The task's column names, each with a description."""

    @property
    def optional(self) -> Sequence[str]:
        """Those of the columns that a file may lack."""

    @property
    def inputs(self) -> Sequence[str]:
        """The columns that the model sees; rows equal in these are duplicates."""

    @property
    def strata(self) -> str | None:
        """The column whose proportions the splits keep."""

    def clean(self, column: str, value: Any) -> Any:
        """Return the value as the task uses it, or None where it is missing or empty.

        Where `data.columns` names several of the file's columns for it, the value is a dict of theirs.
        """

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Say what is wrong with a row of clean values; None is nothing."""


def map_columns(
    table: Table,
    schema: RowSchema,
    mapping: Mapping[str, str | list[str]],
    *,
    bad_rows: str = "refuse",
    needed: Sequence[str] | None = None,
) -> tuple[Columns, list[str]]:
    """Rename, clean and check the columns that a task needs; the others are left behind.

    Args:
        table: what was read.
        schema: the task.
        mapping: the task's column → the table's (or several of them), where the names differ.
        bad_rows: "refuse" raises on a row with a missing value, "drop" leaves it out.
        needed: the task's columns to take; None takes all.

    Returns:
        the columns under the task's names, and notes on what was dropped.

    Raises:
        DataError: a column is missing, or rows can't be used.
    """
    cleaned: Columns = {}
    for name in schema.columns if needed is None else needed:
        if name in schema.optional and name not in mapping and name not in table.columns:
            continue
        try:
            cleaned[name] = [schema.clean(name, value) for value in _values(table, schema, name, mapping)]
        except (TypeError, ValueError) as error:
            raise DataError(f"{table.address}, column '{mapping.get(name, name)}' as {name}: {error}") from error
    missing = {name: [row for row, value in enumerate(values) if value is None] for name, values in cleaned.items()}
    bad = sorted({row for rows in missing.values() for row in rows})
    if not bad:
        return cleaned, []
    reasons = ", ".join(
        f"{len(rows):,} with no {name} ({table.locate(rows)})" for name, rows in missing.items() if rows
    )
    counted = f"{table.address}: {len(bad):,} of {len(table):,} rows"
    if len(bad) == len(table):
        raise DataError(f"{counted} can't be used: {reasons}. Is data.columns right? {_listing(table)}")
    if bad_rows != "drop":
        raise DataError(f"{counted} can't be used: {reasons}. Mend them, or set data.bad_rows=drop to leave them out.")
    gone = set(bad)
    kept = {name: [value for row, value in enumerate(values) if row not in gone] for name, values in cleaned.items()}
    return kept, [f"{counted} dropped: {reasons}."]


def _values(table: Table, schema: RowSchema, name: str, mapping: Mapping[str, str | list[str]]) -> Sequence[Any]:
    """Return the values of the file's column for a task's; of several, a dict a row."""
    source = mapping.get(name, name)
    if isinstance(source, str):
        return table.columns[_find(table, schema, name, source)]
    found = [table.columns[_find(table, schema, name, one)] for one in source]
    return [dict(zip(source, row, strict=True)) for row in zip(*found, strict=True)]


def _find(table: Table, schema: RowSchema, name: str, source: str) -> str:
    if source in table.columns:
        return source
    nearest = did_you_mean(source, table.columns)
    found = nearest.split("'")[1] if nearest else "COLUMN"
    raise DataError(
        f"{table.address} has no column '{source}' for the task's {name} ({schema.columns[name]}).{nearest} "
        f"{_listing(table)} Say which one it is: data.columns.{name}={found}"
    )


def _listing(table: Table) -> str:
    return f"Its columns: {', '.join(repr(str(name)) for name in table.columns)}."
