"""Labels: a recipe's `data.label_map`, the file's labels → the names wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterlab.data.columns import Rows, RowSchema
from adapterlab.errors import DataError, did_you_mean


def map_labels(rows: Rows, schema: RowSchema, mapping: Mapping[str, str]) -> Rows:
    """Rename the labels: those of the column whose proportions splits keep, and all items of lists of labels.

    A label that is a name wanted already stays, so that files which say it either way can be mixed.

    Args:
        rows: after cleaning.
        schema: the task.
        mapping: the file's label → the name wanted; empty changes nothing.

    Raises:
        DataError: a label is in neither side of the mapping, or the task has no labels.
    """
    if not mapping:
        return rows
    names = [name for name in rows.columns if name not in schema.inputs and _holds_labels(rows, schema, name)]
    if not names:
        if all(name in schema.inputs for name in rows.columns):
            return rows  # read to predict on
        raise DataError("data.label_map: this task has no labels that could be renamed; leave it out.")
    wanted = set(mapping.values())
    columns = dict(rows.columns)
    for name in names:
        strangers: dict[str, list[int]] = {}

        def rename(label: Any, row: int, strangers: dict[str, list[int]] = strangers) -> Any:
            text = str(label)
            if text in mapping:
                return mapping[text]
            if text not in wanted:
                strangers.setdefault(text, []).append(row)
            return label

        columns[name] = [
            [rename(item, row) for item in value]
            if isinstance(value, list)
            else value
            if value is None
            else rename(value, row)
            for row, value in enumerate(rows.columns[name])
        ]
        if strangers:
            raise _unknown(name, strangers, rows, mapping)
    return Rows(columns, rows.numbers, rows.origin, rows.groups)


def _holds_labels(rows: Rows, schema: RowSchema, name: str) -> bool:
    if name == schema.strata:
        return True
    values = [value for value in rows.columns[name] if value is not None]
    return bool(values) and all(
        isinstance(value, list) and all(isinstance(item, str | int) for item in value) for value in values
    )


def _unknown(name: str, strangers: Mapping[str, list[int]], rows: Rows, mapping: Mapping[str, str]) -> DataError:
    label, where = next(iter(strangers.items()))
    more = f", and {len(strangers) - 1:,} other labels" if len(strangers) > 1 else ""
    return DataError(
        f"data.label_map has no '{label}', which {rows.origin.address} holds as {name} "
        f"({rows.locate(list(dict.fromkeys(where)))}){more}.{did_you_mean(label, mapping)} "
        f"It maps: {', '.join(f'{key} to {value}' for key, value in mapping.items())}. "
        f'Add it; "{label}": "{label}" keeps it as it is.'
    )
