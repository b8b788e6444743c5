"""What a training row concludes from its trials: the plain arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

LEAST = 0.005  # a difference of accuracies that is never held against us

Curve = Sequence[Mapping[str, float]]  # of {"seconds", "accuracy"}, in order


def behind(ours: Sequence[float], theirs: Sequence[float], least: float = LEAST) -> float:
    """Return how far our mean accuracy is below theirs, as a multiple of what counts as noise: 1 and less is noise.

    Noise is two standard errors of the difference of the means over the seeds, or `least` if that is more.

    Args:
        ours, theirs: one accuracy a seed, as shares.
        least: see above.

    Raises:
        ValueError: there is nothing to compare.
    """
    if not ours or not theirs:
        raise ValueError(f"needs accuracies of both sides, got {len(ours)} and {len(theirs)}")
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in (ours, theirs) if len(side) > 1))
    return (statistics.mean(theirs) - statistics.mean(ours)) / max(least, 2 * error)


def target_of(curves: Sequence[Curve], within: float = 0.01) -> float:
    """Return what counts as having got there: the best accuracy of these curves, less `within`."""
    return max(point["accuracy"] for curve in curves for point in curve) - within


def seconds_to(target: float, curve: Curve) -> float | None:
    """Return the seconds of training after which accuracy was first measured to be at the target; None if never."""
    return next((point["seconds"] for point in curve if point["accuracy"] >= target), None)


def time_in_theirs(ours: float | None, theirs: float | None, spent: float) -> float:
    """Return our time to the target in theirs; infinite if we never get there.

    Where they don't, all that they `spent` counts as theirs: what they would have needed is more.
    """
    return math.inf if ours is None else ours / (spent if theirs is None else theirs)


def shown(seconds: float | None, epochs: float) -> str:
    """Return a time to the target in words."""
    return f"never within {epochs:g} epochs" if seconds is None else f"{seconds:.0f} s"


def per_step(rows: int, mean: float, size: int) -> int:
    """Return how many packed blocks of `size` tokens hold as many tokens as `rows` rows of `mean` tokens."""
    return max(1, round(rows * mean / size))
