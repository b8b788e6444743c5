"""Splits: seeded and stratified, with no text on two sides, and the same on every machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapterlab.data.formats import Columns
from adapterlab.errors import DataError


def take(columns: Columns, rows: Sequence[int]) -> Columns:
    """Return the given rows of all columns."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def size(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values()), []))


def draw(strata: Sequence[Any] | None, rows: Sequence[int], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw `count` of the rows at random, each stratum in proportion.

    Args:
        strata: the stratum of every row of the table (not only of `rows`); None for a plain draw.
        rows: the rows to draw from.
        count: how many to draw; a stratum keeps at least one row behind, so that nothing vanishes from train.
        seed: the same seed draws the same rows, on every machine and with every version of numpy.

    Returns:
        the rows left and the rows drawn, both in the table's order.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for row in rows:
        groups[None if strata is None else strata[row]].append(row)
    keys = sorted(groups, key=str)
    sizes = np.array([len(groups[key]) for key in keys])
    exact = count * sizes / max(sizes.sum(), 1)
    quotas = np.minimum(np.floor(exact).astype(int), sizes - 1)
    # The rows that rounding left over go to the largest remainders, as seats do.
    for index in np.argsort(-(exact - quotas), kind="stable"):
        if quotas.sum() >= count:
            break
        quotas[index] += quotas[index] < sizes[index] - 1
    random = np.random.RandomState(seed)  # its stream is frozen for good; default_rng's may change
    drawn: list[int] = []
    for key, quota in zip(keys, quotas, strict=True):
        members = groups[key]
        drawn += [members[place] for place in random.permutation(len(members))[:quota]]
    taken = set(drawn)
    return [row for row in rows if row not in taken], sorted(drawn)


def drop_duplicates(columns: Columns, inputs: Sequence[str], strata: str | None) -> tuple[Columns, str | None]:
    """Keep the first of the rows that are equal in `inputs`; say how many went, and how many disagreed."""
    seen: dict[Any, int] = {}
    kept: list[int] = []
    disagree = 0
    for row, key in enumerate(keys(columns, inputs)):
        first = seen.setdefault(key, row)
        if first == row:
            kept.append(row)
        elif strata is not None and columns[strata][first] != columns[strata][row]:
            disagree += 1
    gone = size(columns) - len(kept)
    if not gone:
        return columns, None
    what = " and ".join(inputs)
    note = f"{gone:,} rows that repeat another row's {what} dropped before splitting"
    if disagree:
        note += f" ({disagree:,} of them under another {strata} than the one kept)"
    return take(columns, kept), f"{note}."


def keys(columns: Columns, inputs: Sequence[str]) -> list[Any]:
    """Return for each row what tells it from others."""
    return [
        tuple(value.strip() if isinstance(value, str) else repr(value) for value in row)
        for row in zip(*(columns[name] for name in inputs if name in columns), strict=True)
    ]


def split_off(
    columns: Columns, shares: dict[str, float], strata: str | None, seed: int
) -> tuple[Columns, dict[str, Columns]]:
    """Take the shares (of all rows) out of the table; the rest is train.

    Raises:
        DataError: a share comes to no row, or nothing is left to train on.
    """
    total = size(columns)
    rows: list[int] = list(range(total))
    made: dict[str, Columns] = {}
    for name, share in shares.items():
        count = round(total * share)
        rows, drawn = draw(columns[strata] if strata else None, rows, count, seed)
        if not drawn or not rows:
            raise DataError(
                f"data.{name}={share:g} of {total:,} rows gives {name} {len(drawn)} and train {len(rows)}. "
                f"Use more rows, another share, or a file for data.{name}."
            )
        made[name] = take(columns, drawn)
    return take(columns, rows), made
