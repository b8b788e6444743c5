"""Row 11: how time and memory of our LoRA step grow as layers, rank, length and batch double, one at a time.

Outside `adapterlab.lean`, where the last layer would cost next to nothing, and the first doubling of layers most.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import adapterlab
from benchmarks.harness import Goal, Part, Result, Row, Settings, interleaved, medians_of
from benchmarks.steps import bert, kept, step, tokens

SMALL = {"layers": 2, "rank": 8, "length": 64, "batch": 4}
DOUBLINGS = 2


def at(sizes: dict[str, int]) -> tuple[Callable[[], None], float]:
    """Return a step at these sizes, and the megabytes that it saves for backward."""
    model = adapterlab.attach(bert(sizes["layers"]), "lora", r=sizes["rank"], dropout=0.1)
    batch = tokens(sizes["batch"], sizes["length"])
    return step(model, batch), kept(model, batch)


def grown(job: str, unit: str, figures: dict[str, float]) -> Part:
    """Return a part with the ratio of each doubling, and the largest of them."""
    ratios = {f"{a} to {b}": figures[b] / figures[a] for a, b in pairwise(figures)}
    return Part(job, figures, unit, ratios | {"largest": max(ratios.values())})


def measure(settings: Settings) -> Result:
    """Double each of the sizes, the others as they are."""
    parts = []
    for what, small in SMALL.items():
        values = [small * 2**doubling for doubling in range(DOUBLINGS + 1)]
        points = {str(value): at(SMALL | {what: value}) for value in values}
        times = interleaved({name: run for name, (run, _) in points.items()}, settings.rounds)
        parts.append(grown(f"{what}, time", "ms", medians_of(times, 1000)))
        parts.append(grown(f"{what}, memory for backward", "MB", {name: saved for name, (_, saved) in points.items()}))
    base = ", ".join(f"{what} {value}" for what, value in SMALL.items())
    return Result(parts, [f"BERT-base's width, all linears, fp32, dropout 0.1, random weights; from {base}"])


LINEAR = [
    Goal("at most 2.1 per doubling", "largest", most=2.1, job=f"{what}, {figure}")
    for what in SMALL
    if what != "length"  # attention's scores grow with its square
    for figure in ("time", "memory for backward")
]
ROWS = (Row("11", "growth of a LoRA step", tuple(LINEAR), measure, long=True),)
