"""Splits: seeded, stratified, in groups, with no text on two sides, and the same on every machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from adapterlab.data.columns import Rows
from adapterlab.data.label_draw import draw_labelled
from adapterlab.errors import DataError


def draw(strata: Sequence[Any] | None, rows: Sequence[int], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw `count` of the rows at random, each stratum in proportion.

    Args:
        strata: the stratum of every row of the table (not only of `rows`), or a list of them; None for a plain draw.
        rows: the rows to draw from.
        count: how many to draw; a stratum keeps at least one row behind, so that nothing vanishes from train.
        seed: the same seed draws the same rows, on every machine and with every version of numpy.

    Returns:
        the rows left and the rows drawn, both in the table's order.
    """
    if strata is not None and any(isinstance(strata[row], list) for row in rows):
        return draw_labelled({row: strata[row] for row in rows}, count, seed)
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


def draw_groups(
    groups: Sequence[Any], strata: Sequence[Any] | None, rows: Sequence[int], count: int, seed: int
) -> tuple[list[int], list[int]]:
    """Draw whole groups at random, about `count` rows, each stratum as nearly in proportion as groups allow.

    A group is taken if that brings the strata nearer to their shares, and if no stratum vanishes from what is left.

    Args:
        groups: the group of every row of the table.
        strata: the stratum of every row of the table, or a list of them; None for a plain draw.
        rows: the rows to draw from.
        count: how many to draw.
        seed: as in `draw`.

    Returns:
        the rows left and the rows drawn, both in the table's order.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        members[str(groups[row])].append(row)
    kinds = {row: _kinds(None if strata is None else strata[row]) for row in rows}
    place = {kind: number for number, kind in enumerate(sorted({*chain(*kinds.values())}, key=str))}

    def counted(some: Sequence[int]) -> np.ndarray[Any, Any]:
        return np.bincount([place[kind] for row in some for kind in kinds[row]], minlength=len(place))

    left = counted(rows).astype(float)
    wanted = left * count / max(len(rows), 1)
    keys = sorted(members)
    drawn: list[int] = []
    for number in np.random.RandomState(seed).permutation(len(keys)):
        group = members[keys[number]]
        holds = counted(group)
        nearer = np.square(wanted - holds).sum() < np.square(wanted).sum()
        if nearer and not ((left - holds <= 0) & (holds > 0)).any():
            wanted, left = wanted - holds, left - holds
            drawn += group
    taken = set(drawn)
    return [row for row in rows if row not in taken], sorted(drawn)


def _kinds(stratum: Any) -> tuple[Any, ...]:
    """Return what a row counts for: its stratum; where it has a list of them, each, and itself as a row."""
    return (None, *stratum) if isinstance(stratum, list) else (stratum,)


def drop_duplicates(rows: Rows, inputs: Sequence[str], strata: str | None, where: str) -> tuple[Rows, list[str]]:
    """Keep the first of the rows that are equal in `inputs`; note how many went, and how many disagreed."""
    seen: dict[Any, int] = {}
    kept: list[int] = []
    disagree = 0
    for row, key in enumerate(keys(rows, inputs)):
        first = seen.setdefault(key, row)
        if first == row:
            kept.append(row)
        elif strata is not None and len({frozenset(_kinds(rows.columns[strata][one])) for one in (first, row)}) > 1:
            disagree += 1
    gone = len(rows) - len(kept)
    if not gone:
        return rows, []
    what = " and ".join(name for name in inputs if name in rows.columns)
    note = f"{gone:,} rows that repeat another row's {what} dropped {where}"
    if disagree:
        note += f" ({disagree:,} of them under another {strata} than the one kept)"
    return rows.take(kept), [f"{note}."]


def keys(rows: Rows, inputs: Sequence[str]) -> list[Any]:
    """Return for each row what tells it from others."""
    return [
        tuple(value.strip() if isinstance(value, str) else repr(value) for value in row)
        for row in zip(*(rows.columns[name] for name in inputs if name in rows.columns), strict=True)
    ]


def split_off(rows: Rows, shares: Mapping[str, float], strata: str | None, seed: int) -> tuple[Rows, dict[str, Rows]]:
    """Take the shares (of all rows) out of the table, in whole groups if rows have them; the rest is train.

    Raises:
        DataError: a share comes to no row, or nothing is left to train on.
    """
    total = len(rows)
    left: list[int] = list(range(total))
    kinds = rows.columns[strata] if strata else None
    made: dict[str, Rows] = {}
    for name, share in shares.items():
        count = round(total * share)
        if rows.groups is None:
            left, drawn = draw(kinds, left, count, seed)
        else:
            left, drawn = draw_groups(rows.groups, kinds, left, count, seed)
        if not drawn or not left:
            raise DataError(
                f"data.{name}={share:g} of {total:,} rows{_grouped(rows)} gives {name} {len(drawn)} and train "
                f"{len(left)}. Use more rows, another share, or a file for data.{name}."
            )
        made[name] = rows.take(drawn)
    return rows.take(left), made


def _grouped(rows: Rows) -> str:
    if rows.groups is None:
        return ""
    sizes = Counter(map(str, rows.groups))
    return f" in {len(sizes):,} groups, the largest of {max(sizes.values()):,} rows,"
