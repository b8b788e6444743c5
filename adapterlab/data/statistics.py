"""Statistics of encoded rows, for the report: how long they are, how many were cut, and how often each class is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class SplitStatistics:
    """Of one split. Lengths are in tokens, special ones included, after cutting."""

    rows: int
    mean: float
    median: float
    p95: float
    longest: int
    cut: int | None = None  # rows that lost tokens; None where that isn't known
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def cut_share(self) -> float | None:
        """The share of rows that lost tokens."""
        return None if self.cut is None else self.cut / max(self.rows, 1)


def describe(encoded: Dataset, *, cut: int | None = None, labels: Sequence[str] = ()) -> SplitStatistics:
    """Measure a split.

    Args:
        encoded: rows with `input_ids` (lists of token ids, or for several candidates a row lists of such lists),
            and, where there are classes, `labels`.
        cut: how many rows lost tokens, as the tokenising knows.
        labels: the names of the classes, by number; none counts no classes.
    """
    lengths = _lengths(encoded)
    mean, median, p95 = (
        (float(np.mean(lengths)), float(np.median(lengths)), float(np.percentile(lengths, 95)))
        if len(lengths)
        else (0.0, 0.0, 0.0)
    )
    return SplitStatistics(
        len(encoded), mean, median, p95, int(max(lengths, default=0)), cut, _classes(encoded, labels)
    )


def as_tables(splits: Mapping[str, SplitStatistics]) -> str:
    """Return Markdown: a line a split with its lengths, and, where there are classes, one with their shares."""
    lines = ["| split | rows | mean | median | 95 % | longest | cut |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, one in splits.items():
        cut = "" if one.cut_share is None else "< 0.1%" if 0 < one.cut_share < 0.001 else f"{one.cut_share:.1%}"
        lengths = f"{one.mean:.1f} | {one.median:g} | {one.p95:g} | {one.longest}"
        lines.append(f"| {name} | {one.rows:,} | {lengths} | {cut} |")
    classes = list(dict.fromkeys(label for one in splits.values() for label in one.classes))
    if classes:
        cells = [label.replace("|", "\\|").replace("\n", " ") for label in classes]
        lines += ["", f"| split | {' | '.join(cells)} |", "|---" * (len(classes) + 1) + "|"]
        for name, one in splits.items():
            total = max(sum(one.classes.values()), 1)
            counts = [one.classes.get(label, 0) for label in classes]
            lines.append(f"| {name} | {' | '.join(f'{count:,} ({count / total:.1%})' for count in counts)} |")
    return "\n".join(lines) + "\n"


def _lengths(encoded: Dataset) -> Sequence[int]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    ids = encoded.with_format("arrow")[:]["input_ids"]
    while pa.types.is_list(ids.type.value_type) or pa.types.is_large_list(ids.type.value_type):
        ids = pc.list_flatten(ids)  # a row's candidates, each on its own
    lengths: Sequence[int] = pc.list_value_length(ids).to_numpy()
    return lengths


def _classes(encoded: Dataset, labels: Sequence[str]) -> dict[str, int]:
    if not labels or "labels" not in encoded.column_names or not len(encoded):
        return {}
    values: list[Any] = encoded["labels"][:]
    if not isinstance(values[0], list):
        numbers = np.asarray(values)
    elif isinstance(values[0][0] if values[0] else 0, float):  # a number for each class, 1 where the row has it
        sums = np.asarray(values).sum(axis=0)
        return {label: int(count) for label, count in zip(labels, sums, strict=True)}
    else:
        numbers = np.concatenate([np.asarray(value, dtype=np.int64) for value in values])
    if not np.issubdtype(numbers.dtype, np.integer):
        return {}  # a number to be predicted is no class
    counts = np.bincount(numbers[numbers >= 0], minlength=len(labels))  # -100 is what the loss passes over
    return {label: int(count) for label, count in zip(labels, counts, strict=True)}
