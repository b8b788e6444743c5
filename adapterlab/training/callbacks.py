"""What is seen and kept of a run while it trains: a progress bar, a line per evaluation, metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

_KEPT = ("loss", "learning_rate", "grad_norm")  # of what the Trainer logs between evaluations


class Narrator(TrainerCallback):
    """Shows training on the console: a bar where it is a terminal, a line per evaluation everywhere.

    As a context manager it takes the bar away, whatever training ends with.
    """

    def __init__(self, console: Console, metrics: list[str]) -> None:
        self.console = console
        self.metrics = metrics
        self.progress: Progress | None = None
        self.bars: dict[str, Any] = {}
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar."""
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self.progress.start()
        self.bars["train"] = self.progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, note=""
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.progress:
            note = "" if self.loss is None else f"loss {self.loss:.3f}"
            self.progress.update(self.bars["train"], completed=state.global_step, note=note)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show a second bar while evaluating."""
        if not self.progress or not hasattr(eval_dataloader, "__len__"):
            return
        if "eval" not in self.bars:
            self.bars["eval"] = self.progress.add_task("evaluating", total=len(eval_dataloader), note="")
        self.progress.advance(self.bars["eval"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember the training loss for the bar."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Print the evaluation's line."""
        if self.progress and "eval" in self.bars:
            self.progress.remove_task(self.bars.pop("eval"))
        if not state.is_world_process_zero or not metrics:
            return
        known = [name for name in ("loss", *self.metrics) if f"eval_{name}" in metrics]
        shown = "  ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in known)
        where = f"step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.2f}"
        self.console.print(f"{where}  eval {shown}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Narrator:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


class MetricsLog(TrainerCallback):
    """Appends every log to metrics.jsonl; what a resumed run repeats is cut off first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop rows of steps that will be trained again."""
        if state.is_world_process_zero and self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a row; a number that isn't finite is written as null, which JSON can hold."""
        values = {
            key: value
            for key, value in (logs or {}).items()
            if key in _KEPT or (key.startswith("eval_") and not key.endswith(("runtime", "per_second")))
        }
        if not state.is_world_process_zero or not values:
            return
        row = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        row |= {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
