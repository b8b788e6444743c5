"""Overlaps: rows to measure on that are also trained on. Scores on them say nothing about new text."""

from __future__ import annotations

from collections.abc import Sequence

from adapterlab.data.columns import Rows
from adapterlab.data.splits import keys
from adapterlab.errors import DataError


def settle_overlaps(splits: dict[str, Rows], inputs: Sequence[str], choice: str) -> tuple[dict[str, Rows], list[str]]:
    """Report rows that train shares with eval or test, take them out of train, or refuse them.

    Args:
        splits: by name.
        inputs: the columns in which rows are equal.
        choice: "report", "drop" or "refuse".

    Returns:
        the splits and notes.

    Raises:
        DataError: there are some, and the choice is "refuse"; or nothing would be left to train on.
    """
    train = splits["train"]
    of_train = keys(train, inputs)
    notes: list[str] = []
    gone: set[int] = set()
    for name in ("eval", "test"):
        if name not in splits:
            continue
        found = set(keys(splits[name], inputs))
        shared = [row for row, key in enumerate(of_train) if key in found]
        if not shared:
            continue
        different = len({of_train[row] for row in shared})
        said = f"{different:,} of the {len(found):,} different rows of {name} are also in train"
        if choice == "refuse":
            raise DataError(
                f"{said} ({train.locate(shared)}): its scores would flatter. Take them out of one of the files, or "
                "set data.overlap=drop to leave them out of train."
            )
        gone.update(shared if choice == "drop" else ())
        notes.append(f"{said}: {'dropped from train' if choice == 'drop' else 'its scores flatter'}.")
    if not gone:
        return splits, notes
    if len(gone) == len(train):
        raise DataError("data.overlap=drop leaves nothing to train on: every row of train is also in eval or test.")
    return {**splits, "train": train.take([row for row in range(len(train)) if row not in gone])}, notes
