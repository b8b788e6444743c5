"""Verbs around a training run: estimate what it takes, sweep over its settings."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterlab.cli.console import busy, done, err, examples, load, note, out
from adapterlab.cli.train import Overrides, Recipe


@examples("adapterlab estimate quickstart", "adapterlab estimate quickstart adapter.method=prefix optim.epochs=3")
def estimate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Say what a run will take: parameters, memory by part, steps and time.

    Data, backbone and adapter are loaded and a few steps are measured on this machine; nothing is written.
    """
    from rich.table import Table

    loaded = load(recipe, overrides)
    with busy("measuring a few steps"):
        from adapterlab.estimating import estimate as measure
        from adapterlab.training.report import duration, size

        found = measure(loaded)
    table = Table(box=None, pad_edge=False, show_header=False)
    share = 100 * found.trained / found.total
    rest = found.training_seconds - found.evaluation_seconds
    for name, value in (
        ("parameters", f"{found.trained:,} trained of {found.total:,} ({share:.2f} %)"),
        ("steps", f"{found.steps:,}, {1000 * found.step_seconds:,.0f} ms each"),
        ("time", f"{duration(found.training_seconds)}: {duration(rest)} training, "
                 f"{duration(found.evaluation_seconds)} evaluating"),
        ("memory", f"{size(found.peak_memory)} at the peak"),
        *((f"  {part}", size(amount)) for part, amount in found.memory.items()),
        ("adapter on disk", size(found.adapter_bytes)),
        *([("cache on disk", f"{size(found.cache_bytes)} while it trains")] if found.cache_bytes else []),
    ):  # fmt: skip
        table.add_row(f"[bold]{name}[/bold]", value)
    out().print(table, highlight=False)


@examples(
    "adapterlab sweep quickstart --grid optim.lr=5e-4,1e-3,2e-3 --grid adapter.r=4,8",
    "adapterlab sweep quickstart --grid optim.lr=1e-4..1e-2 --grid adapter.method=lora,bottleneck --trials 12",
)
def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=A,B,C",
            help="Values to try for a key; with --trials also a range, KEY=LOW..HIGH. May be given several times.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="So many runs, proposed by Optuna. Default: each combination once."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
) -> None:
    """Run a recipe with many settings and pick the best on the eval rows.

    Each trial has a run folder of its own in RUN-sweep. One that fails is reported, and the sweep goes on. At the end
    the table of all trials is printed, and best.yaml is the recipe of the best.
    """
    loaded = load(recipe, overrides)
    from rich.table import Table
    from rich.text import Text

    with busy("loading"):
        from adapterlab.sweeping import Trial
        from adapterlab.sweeping import sweep as run_sweep
        from adapterlab.training.report import duration

    def tell(trial: Trial) -> None:
        settings = " ".join(f"{key}={value}" for key, value in trial.settings.items())
        came_to = f"failed: {trial.error}" if trial.value is None else f"{trial.value:.4f}"
        err().print(Text(f"trial {trial.number}: {settings}: {came_to}"), soft_wrap=True)

    result = run_sweep(loaded, grid=grid or (), trials=trials, resume=resume, tell=tell)
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.settings))
    table = Table("trial", *keys, result.metric, "time", box=None, pad_edge=False, header_style="bold")
    for trial in result.trials:
        value = "failed" if trial.value is None else f"{trial.value:.4f}"
        cells = [str(trial.number), *(trial.settings.get(key, "") for key in keys), value, duration(trial.seconds)]
        table.add_row(*map(Text, cells), style="bold green" if trial is result.best else None)
    out().print(table, highlight=False)
    for trial in result.trials:
        if trial.error:
            note(f"trial {trial.number} failed: {trial.error}")
    if result.best is None:
        note("every trial failed.")
        raise typer.Exit(1)
    done(f"next: adapterlab train {result.folder / 'best.yaml'} run.dir=runs/best")
