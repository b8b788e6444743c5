"""Columns: a table's columns under the names that a task uses; unusable rows are refused or dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapterlab.data.formats import Columns
from adapterlab.data.origins import Origin
from adapterlab.data.sources import Table
from adapterlab.errors import DataError, did_you_mean

_KINDS = 5  # so many different faults at most in a message


class RowSchema(Protocol):
    """What the data floor needs to know of a task: its columns, and which values can be used."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The task's column names, each with a description."""

    @property
    def optional(self) -> Sequence[str]:
        """Those of the columns that a file may lack, and whose values may be missing."""

    @property
    def synonyms(self) -> Mapping[str, Sequence[str]]:
        """Other names under which files have a column; the first one that is there is taken."""

    @property
    def inputs(self) -> Sequence[str]:
        """The columns that the model sees; rows equal in these are duplicates."""

    @property
    def strata(self) -> str | None:
        """The column whose proportions the splits keep; its values may be lists."""

    @property
    def documents(self) -> str | None:
        """How a txt's lines make rows: "auto", "blank_lines" or "lines"; None takes each for one, blank ones too."""

    @property
    def raw_text(self) -> bool:
        """Whether the task reads corpora, which may be streamed."""

    def clean(self, column: str, value: Any) -> Any:
        """Return the value as the task uses it, or None where it is missing or empty.

        Where `data.columns` names several of the file's columns for it, the value is a dict of theirs.

        Raises:
            ValueError: the value is of a kind that can't be used; the message goes on from "where column 'x' ".
        """

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Say what is wrong with a row of clean values as a whole (a span outside the text), or return None.

        `row` has the columns that were read: not those optional ones that the file lacks, and, where rows are only
        predicted on, those that the model needs.
        """


@dataclass
class Rows:
    """A task's rows, which rows of what was read they are, and the group of each where the splits keep groups."""

    columns: Columns
    numbers: Sequence[int]
    origin: Origin
    groups: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Sequence[int]) -> Rows:
        """Return the rows at these places, in this order."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return Rows(columns, [self.numbers[row] for row in rows], self.origin, groups)

    def locate(self, rows: Sequence[int]) -> str:
        """Say in which lines of which files these rows stand."""
        return self.origin.locate([self.numbers[row] for row in rows])

    def each(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a mapping."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))


def map_columns(
    table: Table,
    schema: RowSchema,
    mapping: Mapping[str, str | list[str]],
    *,
    bad_rows: str = "refuse",
    needed: Sequence[str] | None = None,
    group_by: str | None = None,
) -> tuple[Rows, list[str]]:
    """Rename, clean and check the columns that a task needs; the others are left behind.

    Args:
        table: what was read.
        schema: the task.
        mapping: the task's column → the table's (or several of them), where the names differ.
        bad_rows: "refuse" raises on a row with a missing or unusable value, "drop" leaves it out.
        needed: the task's columns to take; None takes all.
        group_by: the table's column that says which rows belong together.

    Returns:
        the rows under the task's names, and notes on what was dropped.

    Raises:
        DataError: a column is missing, or rows can't be used.
    """
    faults: dict[str, list[int]] = {}
    cleaned: Columns = {}
    for name in schema.columns if needed is None else needed:
        source = source_of(schema, name, mapping, table.columns)
        if name in schema.optional and name not in mapping and source not in table.columns:
            continue
        if isinstance(source, str):
            cleaned[name] = _clean(
                _find(table, schema, name, source, mapping), schema, name, f"column '{source}' ", faults
            )
        else:
            found = [_find(table, schema, name, one, mapping) for one in source]
            rows_of = [dict(zip(source, values, strict=True)) for values in zip(*found, strict=True)]
            cleaned[name] = _clean(rows_of, schema, name, "column ", faults)
    rows = Rows(cleaned, range(len(table)), table.origin)
    if group_by is not None:
        if group_by not in table.columns:
            raise DataError(
                f"data.group_by: {table.origin.address} has no column '{group_by}'."
                f"{did_you_mean(group_by, table.columns)} {_listing(table)}"
            )
        rows.groups = table.columns[group_by]
        if alone := [row for row, value in enumerate(rows.groups) if value is None or value == ""]:
            faults[f"with no {group_by} (data.group_by)"] = alone
    bad = {row for found in faults.values() for row in found}
    for number, row in enumerate(rows.each()):
        if number not in bad and (problem := schema.check(row)):
            faults.setdefault(f"where {problem}", []).append(number)
    return _without(rows, faults, table, bad_rows)


def _clean(values: Sequence[Any], schema: RowSchema, name: str, where: str, faults: dict[str, list[int]]) -> list[Any]:
    cleaned: list[Any] = []
    missing: list[int] = []
    for row, value in enumerate(values):
        try:
            cleaned.append(schema.clean(name, value))
        except (TypeError, ValueError) as error:
            faults.setdefault(f"where {where}{error}", []).append(row)
            cleaned.append(None)
            continue
        if cleaned[-1] is None:
            missing.append(row)
    if missing and name not in schema.optional:
        faults[f"with no {name}"] = missing
    return cleaned


def _without(rows: Rows, faults: Mapping[str, list[int]], table: Table, bad_rows: str) -> tuple[Rows, list[str]]:
    """Leave the faulty rows out, with a note, or refuse them all."""
    bad = {row for found in faults.values() for row in found}
    if not bad:
        return rows, []
    reasons = [f"{len(found):,} {fault} ({rows.locate(found)})" for fault, found in list(faults.items())[:_KINDS]]
    if len(faults) > _KINDS:
        reasons.append(f"and {len(faults) - _KINDS:,} faults more")
    counted, said = f"{table.origin.address}: {len(bad):,} of {len(rows):,} rows", ", ".join(reasons)
    if len(bad) == len(rows):
        raise DataError(f"{counted} can't be used: {said}. Is data.columns right? {_listing(table)}")
    if bad_rows != "drop":
        raise DataError(f"{counted} can't be used: {said}. Mend them, or set data.bad_rows=drop to leave them out.")
    return rows.take([row for row in range(len(rows)) if row not in bad]), [f"{counted} dropped: {said}."]


def source_of(schema: Any, name: str, mapping: Mapping[str, Any], there: Collection[str]) -> Any:
    """Return the name under which a file has a task's column: as mapped (or several), its own, or a synonym."""
    if name in mapping:
        return mapping[name]
    return next((other for other in (name, *schema.synonyms.get(name, ())) if other in there), name)


def _find(
    table: Table, schema: RowSchema, name: str, source: str, mapping: Mapping[str, str | list[str]]
) -> Sequence[Any]:
    if source in table.columns:
        return table.columns[source]
    others = [source_of(schema, other, mapping, table.columns) for other in schema.columns if other != name]
    nearest = did_you_mean(source, [column for column in table.columns if column not in others])
    found = nearest.split("'")[1] if nearest else "COLUMN"
    raise DataError(
        f"{table.origin.address} has no column '{source}' for the task's {name} ({schema.columns[name]}).{nearest} "
        f"{_listing(table)} {_conll(table, schema)}Say which one it is: data.columns.{name}={found}"
    )


def _conll(table: Table, schema: RowSchema) -> str:
    """Ask for another ending where words and their tags may stand in a file named as text or table."""
    names = [file.name.removesuffix(".gz").removesuffix(".zst") for file in table.origin.files]
    if "tags" not in schema.columns or not all(name.endswith((".txt", ".tsv")) for name in names):
        return ""
    return "If it is a CoNLL file (a word and its tag a line), name it .conll. "


def _listing(table: Table) -> str:
    return f"Its columns: {', '.join(repr(str(name)) for name in table.columns)}."
