"""Draws of rows that have several labels each: every label in proportion, the rare ones first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np


def draw_labelled(labels: Mapping[int, Sequence[str]], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw `count` rows by iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011).

    Of the labels still to be shared out, that with fewest rows is next; each of its rows goes to the side that lacks
    most of it, and where both lack as many, to the side that lacks more rows. A row that is the last chance of one of
    its labels to stay behind stays, so that no label vanishes from train.

    Args:
        labels: the labels of each row to draw from, none included.
        count: how many to draw; fewer are only where every row left is the last one of a label.
        seed: the same seed draws the same rows, on every machine and with every version of numpy.

    Returns:
        the rows left and the rows drawn, both in the table's order.
    """
    every = list(labels)
    shuffled = [every[place] for place in np.random.RandomState(seed).permutation(len(every))]
    holders: dict[str, list[int]] = defaultdict(list)
    for row in shuffled:
        for label in set(labels[row]):
            holders[label].append(row)
    waiting = Counter({label: len(rows) for label, rows in holders.items()})  # rows of a label not shared out yet
    share = count / max(len(every), 1)
    lacking = {label: [(1 - share) * n, share * n] for label, n in waiting.items()}  # of left, of drawn
    room = [len(every) - count, count]
    kept: Counter[str] = Counter()  # a label's rows that stay behind
    side: dict[int, int] = {}

    def put(row: int, drawn: int) -> None:
        side[row] = drawn
        room[drawn] -= 1
        for label in set(labels[row]):
            waiting[label] -= 1
            lacking[label][drawn] -= 1
            kept[label] += not drawn

    while open_labels := [label for label, n in waiting.items() if n]:
        label = min(open_labels, key=lambda one: (waiting[one], one))
        for row in holders[label]:
            if row in side:
                continue
            last = any(waiting[one] == 1 and not kept[one] for one in labels[row])
            left, drawn = lacking[label]
            more = drawn > left if abs(drawn - left) > 1e-9 else room[1] > room[0]
            put(row, int(more and room[1] > 0 and not last))
    for row in shuffled:  # those without a label, and if there are too few, some that their labels can spare
        if row not in side:
            put(row, int(room[1] > 0))
    for row in shuffled:
        if room[1] > 0 and not side[row] and all(kept[one] > 1 for one in labels[row]):
            side[row] = 1
            room[1] -= 1
            kept.subtract(set(labels[row]))
    return [row for row in every if not side[row]], [row for row in every if side[row]]
