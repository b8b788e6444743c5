"""The report of a merge or a quantization: one table, the rows that are answered otherwise, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterlab.deploy.comparing import Comparison, said
from adapterlab.tasks.metrics import METRICS
from adapterlab.training.report import as_markdown, size

REPORT, PICTURE, FIGURES = "report.md", "report.png", "report.json"
SHOWN = 20  # rows that changed
_BEFORE, _AFTER, _INK = "#8b949e", "#2a9d5c", "#30363d"


def lines(found: Comparison) -> list[list[str]]:
    """Return the table, header first: what was measured, before, after, and what that comes to."""
    before, after = found.before, found.after
    table = [["", before.name, after.name, ""]]
    for name, value in after.metrics.items():
        if name in before.metrics:
            table.append(
                [name, f"{before.metrics[name]:.4f}", f"{value:.4f}", _gain(name, before.metrics[name], value)]
            )
    if found.changes is not None:
        share = f"{len(found.changes) / max(found.rows, 1):.1%}"
        table.append(["answers that changed", "", f"{len(found.changes):,} of {found.rows:,}", share])
    if found.logits is not None:
        table.append(["logits apart", "", f"{found.logits[0]:.2g}", f"at most {found.logits[1]:.2g}"])
    table.append(["weights", size(before.weights), size(after.weights), f"{after.weights / before.weights:.2f} x"])
    if before.load is not None and after.load is not None:
        table.append(["loading", _ms(before.load), _ms(after.load), f"{after.load / before.load:.2f} x"])
    for shape in after.passes:
        (p50, p95), (q50, q95) = before.latency(shape), after.latency(shape)
        name, faster = f"{shape[0]} x {shape[1]} tokens", f"{p50 / q50:.2f} x as fast"
        table.append([f"{name}, median (p95)", f"{_ms(p50)} ({_ms(p95)})", f"{_ms(q50)} ({_ms(q95)})", faster])
        if shape[0] > 1:
            table.append([f"{name}, rows/s", f"{shape[0] / p50:.0f}", f"{shape[0] / q50:.0f}", ""])
    return table


def write_comparison(folder: Path, title: str, found: Comparison, notes: Sequence[str], environment: Any) -> None:
    """Write report.md, report.png and report.json into a folder."""
    draw(folder / PICTURE, title, found)
    table = lines(found)
    parts = [f"# {title}", f"Measured on {found.rows:,} rows of {found.split}.", as_markdown(table[0], table[1:])]
    parts.append(f"![before and after]({PICTURE})")
    if found.changes:
        shown = [[str(c.number), *map(_word, (c.row, said(c.before), said(c.after)))] for c in found.changes[:SHOWN]]
        more = f" The first {SHOWN} of {len(found.changes):,}:" if len(found.changes) > SHOWN else ""
        parts += [f"## Rows that are answered otherwise\n\nCounted from 1.{more}"]
        parts.append(as_markdown(["row", "given", found.before.name, found.after.name], shown))
    if notes:
        parts += ["## How it was made", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Environment", "\n".join(f"- {name}: {value}" for name, value in environment.items())]
    (folder / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / FIGURES).write_text(json.dumps(figures(found), indent=2) + "\n", encoding="utf-8")


def figures(found: Comparison) -> dict[str, Any]:
    """Return all that was measured, as JSON holds it."""
    sides = {}
    for key, side in (("before", found.before), ("after", found.after)):
        passes = {f"{rows}x{length}": side.latency((rows, length)) for rows, length in side.passes}
        sides[key] = {
            "name": side.name, "metrics": dict(side.metrics), "weights": side.weights, "load": side.load,
            "passes": {shape: {"p50": p50, "p95": p95} for shape, (p50, p95) in passes.items()},
        }  # fmt: skip
    changed = None if found.changes is None else [change.number for change in found.changes]
    apart = found.logits and found.logits[:2]
    return {**sides, "split": found.split, "rows": found.rows, "changed": changed, "logits_apart": apart}


def draw(path: Path, title: str, found: Comparison) -> None:
    """Draw what matters most side by side: the first metric, the weights, the passes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, list[float], list[str]]] = []
    for name in list(found.after.metrics)[:1]:
        values = [side.metrics[name] for side in (found.before, found.after)]
        panels.append((name, values, [f"{value:.4f}" for value in values]))
    sizes = [side.weights for side in (found.before, found.after)]
    panels.append(("weights", [float(value) for value in sizes], [size(value) for value in sizes]))
    for shape in found.after.passes:
        taken = [side.latency(shape)[0] for side in (found.before, found.after)]
        panels.append((f"{shape[0]} x {shape[1]} tokens", taken, [_ms(value) for value in taken]))
    figure = Figure(figsize=(2.1 * len(panels), 2.8), dpi=150, facecolor="white", layout="constrained")
    for axis, (name, values, words) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        bars = axis.bar([found.before.name, found.after.name], values, color=[_BEFORE, _AFTER], width=0.62)
        axis.bar_label(bars, words, fontsize=9, color=_INK, padding=2)
        axis.set_title(name, fontsize=10, color=_INK)
        axis.margins(y=0.16)
        axis.set_yticks([])
        axis.tick_params(colors=_INK, length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold", color=_INK)
    with path.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _gain(name: str, before: float, after: float) -> str:
    if name not in METRICS or METRICS.get(name).is_share:
        return f"{100 * (after - before):+.2f} points"
    return f"{100 * (after / before - 1):+.2f} %" if before else ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f} ms"


def _word(value: Mapping[str, Any]) -> str:
    """Return a row or an answer in few words."""
    words = [str(part) for key, part in value.items() if not key.startswith("_") and key not in ("label", "labels")]
    labels = [str(value[key]) for key in ("label", "labels") if key in value]
    text = " / ".join([*labels, *words])
    return text if len(text) <= 120 else text[:117] + "..."
