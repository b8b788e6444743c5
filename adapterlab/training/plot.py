"""loss.png: the loss curves of a run and its metric, with the baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterlab.tasks.metrics import METRICS

Points = list[tuple[float, float]]

_STEPS = [1, 2, 2.5, 5, 10]  # between ticks
_TRAIN, _EVAL, _METRIC, _INK, _FAINT = "#4c78a8", "#e4572e", "#2a9d5c", "#30363d", "#d8dee4"


def plot_history(
    history: Sequence[Mapping[str, Any]],
    path: Path | str,
    metric: str,
    *,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
) -> Path | None:
    """Draw train and eval loss, and the metric below them, into a PNG.

    Args:
        history: rows of metrics.jsonl.
        path: where the picture goes.
        metric: its name without `eval_`.
        baselines: values of the metric to compare with, by name; drawn as dashed lines.
        title: put above the picture.

    Returns:
        the path, or None if there is nothing to draw (no loss was logged).
    """
    train = _series(history, "loss")
    evaluated = _series(history, "eval_loss")
    scores = _series(history, f"eval_{metric}")
    if not (train or evaluated or scores):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Not pyplot: this leaves a notebook's backend, style and open figures alone.
    panels = 2 if scores else 1
    figure = Figure(figsize=(8, 3 + 2.4 * (panels - 1) + 0.4), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.06})[:, 0]
    for axis in axes:
        axis.grid(axis="y", color=_FAINT, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_STEPS))
        axis.tick_params(colors=_INK, length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color(_FAINT)
    _draw_losses(axes[0], train, evaluated)
    if scores:
        _draw_scores(axes[1], scores, metric, baselines or {})
    axes[-1].set_xlabel("step", fontsize=9, color=_INK)
    axes[-1].set_xlim(left=0)
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, steps=_STEPS, integer=True))
    axes[-1].margins(x=0.02)
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold", color=_INK)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    unfinished.replace(path)
    return path


def _series(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return (step, value) where the key was logged as a finite number."""
    points = [(row.get("step", number), row.get(key)) for number, row in enumerate(history)]
    return [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]


def _draw_losses(axis: Any, train: Points, evaluated: Points) -> None:
    axis.set_title("loss", loc="left", fontsize=10, color=_INK)
    if len(train) > 15:  # single batches jump: show them faintly, and their smoothed course on top
        axis.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=0.8, alpha=0.35)
        train = _smooth(train)
    if train:
        axis.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=2, label="train")
    if evaluated:
        axis.plot(*zip(*evaluated, strict=True), color=_EVAL, linewidth=2, marker="o", markersize=5, label="eval")
    if train or evaluated:
        axis.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=_INK)


def _draw_scores(axis: Any, scores: Points, metric: str, baselines: Mapping[str, float]) -> None:
    from matplotlib.patheffects import withStroke

    axis.set_title(f"{metric} (eval)", loc="left", fontsize=10, color=_INK)
    axis.plot(*zip(*scores, strict=True), color=_METRIC, linewidth=2, marker="o", markersize=5)
    pick = max if metric not in METRICS or METRICS.get(metric).higher_is_better else min
    step, best = pick(scores, key=lambda point: point[1])
    axis.plot(step, best, "o", color=_METRIC, markersize=9, markeredgecolor="white", markeredgewidth=1.5)
    axis.annotate(
        f"best {best:.4f}",
        (step, best),
        xytext=(0, -9),
        textcoords="offset points",
        ha="right" if step > scores[-1][0] / 2 else "left",
        va="top",
        fontsize=9,
        fontweight="bold",
        color=_METRIC,
    )
    for name, value in baselines.items():
        axis.axhline(value, color="#8b949e", linewidth=1.2, linestyle=(0, (4, 3)))
        axis.annotate(
            f"{name} {value:.4f}",
            (0.995, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="#57606a",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axis.margins(y=0.15)


def _smooth(points: Points) -> Points:
    """Return the mean over each point and its neighbours on both sides, so that the curve doesn't lag."""
    reach = max(1, len(points) // 30)
    smoothed = []
    for place, (step, _) in enumerate(points):
        near = min(reach, place)  # evenly many on both sides at the beginning, where losses fall fast
        values = [value for _, value in points[place - near : place + near + 1]]
        smoothed.append((step, sum(values) / len(values)))
    return smoothed
