"""Many runs of one recipe with other settings, and which of them is best: `adapterlab sweep`."""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapterlab.errors import AdapterLabError, ConfigError, RunFolderError
from adapterlab.pipeline import run
from adapterlab.recipe import Recipe, load_recipe
from adapterlab.search_space import Choices, Range, read_space
from adapterlab.tasks import METRICS
from adapterlab.training.run_folder import RunFolder

_TRIALS, _BEST = "trials.jsonl", "best.yaml"
_AROUND = 5  # without a grid, rates from a fifth of the recipe's to five times as much are tried


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. `value` is the deciding metric's best on the eval rows; None if the run failed."""

    number: int
    settings: dict[str, str]
    value: float | None
    metric: str = "loss"
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep gives: its trials in order, and the best of them, whose recipe is `folder`/best.yaml."""

    folder: Path
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None


def sweep(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    grid: Sequence[str] = (),
    trials: int | None = None,
    resume: bool = False,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> SweepResult:
    """Run a recipe with many settings; the best is picked on the eval rows, never on test.

    Args:
        recipe: as for `run`; its run folder gets a sub-folder for each trial.
        overrides: for all trials.
        grid: "KEY=A,B,C" for values and, with `trials`, "KEY=LOW..HIGH" for a range. Without `trials` each
            combination is run once.
        trials: so many runs, whose settings Optuna's TPE sampler proposes (the `sweep` extra). Without a grid it
            tries learning rates around the recipe's.
        resume: go on with a sweep that was stopped; runs that ended are not repeated.
        tell: called after each trial.

    Raises:
        ConfigError: the grid can't be read, or a setting that every trial has is wrong.
        RunFolderError: the folder holds a sweep or a run already.
    """
    loaded = load_recipe(recipe, overrides)
    space = read_space(grid)
    if trials is None and not space:
        raise ConfigError("nothing to try: give --grid optim.lr=1e-4,1e-3 (each combination), or --trials 20.")
    if trials is not None and not space:
        space = {"optim.lr": Range(loaded.optim.lr / _AROUND, loaded.optim.lr * _AROUND)}
    if trials is None:
        _refuse_ranges(space)
    folder = Path(f"{loaded.run.dir}-sweep")
    known = _admit(folder, resume, {"grid": list(grid), "trials": trials})
    proposals = _proposals(space, trials, loaded.run.seed, known)
    done: list[Trial] = []
    metric = "loss"
    for number, (settings, report) in enumerate(proposals):
        trial = next((old for old in known if old.number == number), None)
        if trial is None:
            trial = _run(loaded, folder, number, settings)
            with (folder / _TRIALS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
        metric = trial.metric if trial.value is not None else metric
        report(trial.value if trial.value is None or _higher(metric) else -trial.value)
        done.append(trial)
        tell(trial)
    scored = [trial for trial in done if trial.value is not None]
    best = (max if _higher(metric) else min)(scored, key=lambda trial: trial.value or 0.0) if scored else None
    if best is not None:
        text = _trial_folder(folder, best.number).recipe.read_text("utf-8")
        (folder / _BEST).write_text(text, encoding="utf-8")
    return SweepResult(folder, metric, tuple(done), best)


def _run(recipe: Recipe, folder: Path, number: int, settings: dict[str, str]) -> Trial:
    """Run one trial; whatever it fails of, the sweep goes on."""
    changes = [f"{key}={value}" for key, value in settings.items()]
    place = _trial_folder(folder, number)
    try:
        result = run(recipe, *changes, f"run.dir={place.path}", replace=True)
        trial = Trial(number, settings, None)
        if result is not None:
            trial = Trial(number, settings, result.eval_best, result.eval_metric, result.seconds)
        if trial.value is not None and not math.isfinite(trial.value):
            trial = replace(trial, value=None, error="the deciding metric is not a number: training diverged")
    except (AdapterLabError, RuntimeError, ValueError, OSError) as problem:
        trial = Trial(number, settings, None, error=" ".join(str(problem).split()) or type(problem).__name__)
    gc.collect()  # a model with an adapter is held by cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return trial


def _proposals(
    space: dict[str, Choices | Range], trials: int | None, seed: int, known: Sequence[Trial]
) -> Iterator[tuple[dict[str, str], Callable[[float | None], None]]]:
    """Yield settings, and whom to tell what they were worth (more is better; None is a failure)."""
    if trials is None:
        for values in itertools.product(
            *(choices.values for choices in space.values() if isinstance(choices, Choices))
        ):
            yield dict(zip(space, values, strict=True)), lambda value: None
        return
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "--trials needs Optuna. Run: pip install 'adapterlab[sweep]', or give a --grid alone."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    past = {trial.number: trial.settings for trial in known}
    for number in range(trials):
        if number in past:  # told of it again, the sampler goes on from what it knew
            study.enqueue_trial({key: space[key].parse(value) for key, value in past[number].items()})
        proposed = study.ask()
        settings = {key: values.suggest(proposed, key) for key, values in space.items()}

        def report(value: float | None, proposed: Any = proposed) -> None:
            state = optuna.trial.TrialState.FAIL if value is None else None
            study.tell(proposed, value, state=state)

        yield settings, report


def _refuse_ranges(space: dict[str, Choices | Range]) -> None:
    for key, values in space.items():
        if isinstance(values, Range):
            raise ConfigError(
                f"--grid {key}: a range has no list of values to go through. Give --trials N, or values: "
                f"{key}={values.examples()}."
            )


def _admit(folder: Path, resume: bool, asked: dict[str, Any]) -> list[Trial]:
    """Return the trials that a stopped sweep ended; make the folder."""
    about, file = folder / "sweep.json", folder / _TRIALS
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"'{folder}' is a file; give another run.dir.")
    if about.exists():
        if not resume:
            raise RunFolderError(
                f"'{folder}' holds a sweep already. Go on with it (--resume), or give another run.dir."
            )
        if json.loads(about.read_text("utf-8")) != asked:
            raise RunFolderError(f"'{folder}' holds a sweep of another grid; give the same --grid and --trials.")
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        return [Trial(**json.loads(line)) for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(asked), encoding="utf-8")
    return []


def _trial_folder(folder: Path, number: int) -> RunFolder:
    return RunFolder(folder / f"trial-{number:03d}")


def _higher(metric: str) -> bool:
    return metric in METRICS and METRICS.get(metric).higher_is_better
