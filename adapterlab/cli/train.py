"""Verbs that lead to an adapter: validate, train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from adapterlab.cli.console import done, examples, load, note, report_error
from adapterlab.errors import ConfigError, did_you_mean

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys to change this time: optim.lr=1e-4 adapter.method=adalora. An empty value is null.",
        show_default=False,
    ),
]


@examples("adapterlab validate quickstart", "adapterlab validate quickstart adapter.method=prefix optim.lr=1e-2")
def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe without touching data or model, and print it with all its defaults.

    Every problem is told at once, with its line. `adapterlab train RECIPE --dry-run` goes on to load the
    data and the model.
    """
    from adapterlab.recipe import dump_recipe

    loaded = load(recipe, overrides)
    typer.echo(dump_recipe(loaded), nl=False)
    done(f"{recipe} is valid.")


@examples(
    "adapterlab train quickstart",
    "adapterlab train quickstart adapter.method=bottleneck optim.lr=5e-4 run.dir=runs/bottleneck",
    "adapterlab train quickstart --dry-run   # load everything, train nothing",
)
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="Go on from the run folder's last checkpoint (auto: if it has one), or from this one.",
        ),
    ] = "never",
    replace: Annotated[bool, typer.Option("--replace", help="Delete the run that the run folder holds.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Load data, backbone and adapter, say what would be done, and stop."),
    ] = False,
) -> None:
    """Train an adapter as a recipe says.

    The run folder (run.dir, by default runs/ and the recipe's name) gets the adapter, the resolved recipe,
    metrics.jsonl, report.md and loss.png. One that holds a run is neither overwritten nor resumed unless
    told.
    """
    if resume not in ("auto", "never") and not Path(resume).exists():
        near = did_you_mean(resume, ["auto", "never"])
        raise ConfigError(f"--resume {resume}: no such checkpoint folder.{near} Give auto, never or a folder.")
    if replace and resume != "never":
        raise ConfigError("--replace deletes the run that --resume would go on with; give one of them.")
    loaded = load(recipe, overrides)
    folder = loaded.run.dir
    try:
        from adapterlab.pipeline import run

        run(loaded, resume=resume, replace=replace, dry_run=dry_run)
    except KeyboardInterrupt:
        if folder and any(Path(folder).glob("checkpoints/*")):
            command = shlex.join(["adapterlab", "train", recipe, *(overrides or ()), "--resume", "auto"])
            report_error("interrupted.")
            note(f"{folder} keeps its checkpoints; go on with: {command}")
            raise typer.Exit(130) from None
        raise
    if not dry_run:
        from adapterlab.tasks import TASKS

        task = TASKS.get(loaded.task.type)
        one_text = len(set(task.inputs) - set(task.optional)) == 1
        done(f"next: adapterlab predict {folder} " + ('"your text"' if one_text else "--file rows.jsonl"))
