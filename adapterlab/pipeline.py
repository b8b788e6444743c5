"""From a recipe to a finished run folder: data, backbone, adapter, training, report."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.markup import escape

from adapterlab.adapter_folder import save
from adapterlab.data.statistics import as_tables, describe
from adapterlab.environment import describe_environment
from adapterlab.guests import need_guests
from adapterlab.preparing import Prepared, announce, prepare
from adapterlab.pretrained import quiet
from adapterlab.recipe import Recipe, dump_recipe, load_recipe
from adapterlab.sharding import joins, whole
from adapterlab.tasks import Predictions, ReportTable
from adapterlab.training.callbacks import Narrator, read_metrics
from adapterlab.training.evidence import RunEvidence
from adapterlab.training.plot import plot_history
from adapterlab.training.report import ResultRow, final_table, write_report
from adapterlab.training.resuming import check_resumable
from adapterlab.training.run_folder import RunFolder
from adapterlab.training.streaming import Pace, go_on
from adapterlab.training.trainer import best_metric, build_trainer, planned_steps, row_count


@dataclass(frozen=True)
class RunResult:
    """What a run gives. Metrics are those on `split`; sizes are bytes, times seconds."""

    folder: Path
    method: str
    split: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]  # what the adapter has to beat: metrics by name
    trained: int
    total: int
    seconds: float
    peak_memory: int
    adapter_bytes: int
    eval_metric: str = "loss"  # what decided which state was kept ...
    eval_best: float | None = None  # ... and its best value on the eval rows
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[ResultRow]:
        """The lines of the final table."""
        name, size = f"{self.method} adapter", self.adapter_bytes
        adapter = ResultRow(name, self.metrics, self.trained, self.total, self.seconds, self.peak_memory, size)
        return [*(ResultRow(name, metrics) for name, metrics in self.baselines.items()), adapter]


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    resume: str = "never",
    replace: bool = False,
    dry_run: bool = False,
) -> RunResult | None:
    """Train an adapter as a recipe says; what `adapterlab train` calls.

    Args:
        recipe: a YAML file, a shipped recipe's name, a dict or a Recipe.
        overrides: "key=value" strings, e.g. "optim.lr=1e-4".
        resume: "never", "auto" (from the run folder's last checkpoint, if it has one) or a checkpoint's path.
        replace: delete a run that is in the run folder.
        dry_run: load and check everything, say what would be done, and stop.

    Returns:
        The result, or None for a dry run.

    Raises:
        AdapterLabError: the recipe, the data, the backbone or the run folder can't be used. Nothing has been
            written then.
    """
    recipe = load_recipe(recipe, overrides)
    console = Console(quiet=not _speaks(), stderr=True)
    folder = RunFolder(Path(str(recipe.run.dir)))
    checkpoint = folder.admit(resume, replace, refuses=_speaks())
    with quiet():
        prepared = prepare(recipe, console)
        announce(prepared, folder, checkpoint, console)
        return None if dry_run else _train(prepared, folder, checkpoint, console)


def _train(prepared: Prepared, folder: RunFolder, checkpoint: Path | None, console: Console) -> RunResult | None:
    recipe = prepared.recipe
    if checkpoint is not None:
        check_resumable(checkpoint, prepared.model, planned_steps(recipe, row_count(prepared.rows["train"])))
        if not isinstance(prepared.rows["train"], Dataset):
            go_on(prepared.rows["train"], checkpoint)
        if folder.splits.exists():
            prepared.splits.verify(folder.splits)
    with folder.begin() if _speaks() and checkpoint is None else nullcontext():
        if _speaks():
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
            if not folder.splits.exists():
                prepared.splits.write(folder.splits)
        return _train_and_report(prepared, folder, checkpoint, console)


def _train_and_report(
    prepared: Prepared, folder: RunFolder, checkpoint: Path | None, console: Console
) -> RunResult | None:
    recipe, task, model = prepared.recipe, prepared.task, prepared.model
    narrator = Narrator(console, task.metrics)
    trainer = build_trainer(recipe, task, model, prepared.tokenizer, prepared.splits, prepared.rows, folder, narrator)
    pace = Pace()
    trainer.add_callback(pace)
    started = time.perf_counter()
    with narrator, prepared.at_speed(trainer, folder.path, console):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    told = len(task.notes)
    if task.raw_text:
        task.note(pace.said())
    task.settle(
        lambda: Predictions(trainer.outputs(prepared.rows["eval"]), prepared.rows["eval"], prepared.splits.eval)
    )
    need_guests(model).adapters["default"].about["task"] = task.state()
    split = "test" if "test" in prepared.rows else "eval"
    seen = Predictions(trainer.outputs(prepared.rows[split]), prepared.rows[split], prepared.splits.named[split])
    if joins(model, trainer.is_world_process_zero()):
        save(model, folder.adapter)
    with console.status("measuring what it has to beat"):
        evidence = RunEvidence(
            task, trainer, prepared.tokenizer, prepared.splits, prepared.rows, split, recipe.run.seed, prepared.plain
        )
        baselines = task.baselines(evidence)
    guest = need_guests(model).adapters["default"]
    with whole(model):
        became = guest.method.report(model, guest.name, guest.config)
    if not trainer.is_world_process_zero():
        return None
    if became:
        prepared.notes.append(became)
    prepared.notes += task.notes[told:]
    result = RunResult(
        folder=folder.path,
        method=recipe.adapter.method,
        split=split,
        metrics=task.measure(seen),
        baselines=baselines,
        trained=prepared.counts.trainable,
        total=prepared.counts.total,
        seconds=seconds,
        peak_memory=peak_memory(),
        adapter_bytes=sum(file.stat().st_size for file in folder.adapter.iterdir()),
        eval_metric=best_metric(recipe, task),
        eval_best=trainer.state.best_metric,
        notes=tuple(prepared.notes),
    )
    _report(prepared, folder, result, task.tables(seen))
    console.print(final_table(result.rows, task.metrics, split=split))
    for line in task.notes[told:]:
        console.print(f"[dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)
    if became:
        console.print(became, highlight=False, soft_wrap=True, markup=False)
    for name, path in (("report", folder.report), ("picture", folder.picture)):
        if path.exists():
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True, markup=False)
    return result


def _report(prepared: Prepared, folder: RunFolder, result: RunResult, tables: list[ReportTable]) -> None:
    recipe, metrics, drawn = prepared.recipe, prepared.task.metrics, prepared.task.eval_metrics[0]
    title = f"{folder.path.name}: {recipe.adapter.method} on {recipe.model.name}"
    picture = None
    if recipe.log.plot and folder.metrics.exists():
        baselines = {name: found[drawn] for name, found in result.baselines.items() if drawn in found}
        history = read_metrics(folder.metrics)
        picture = plot_history(history, folder.picture, drawn, baselines=baselines, title=title)
    write_report(
        folder.report,
        title=title,
        rows=result.rows,
        metrics=metrics,
        recipe_yaml=dump_recipe(recipe),
        split=result.split,
        tables=tables,
        sizes=prepared.splits.sizes,
        statistics=as_tables(
            {
                name: describe(rows, cut=prepared.task.cut.get(name), labels=prepared.task.labels)
                for name, rows in prepared.rows.items()
                if isinstance(rows, Dataset)  # a stream has no end to count to
            }
        ),
        notes=result.notes,
        environment=describe_environment(),
        picture=picture.name if picture else None,
    )


def _speaks() -> bool:
    """Whether this is the process, of several that a launcher started, that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def peak_memory() -> int:
    """Return the most memory that was in use, in bytes: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
