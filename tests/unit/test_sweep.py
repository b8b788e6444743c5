"""`adapterlab sweep`: many runs of one recipe, the best of them, failures and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from language_workshop import language_recipes
from tiny_workshop import furnish
from typer.testing import CliRunner

from adapterlab.cli.app import app
from adapterlab.errors import ConfigError, RunFolderError
from adapterlab.recipe import load_recipe
from adapterlab.search_space import Choices, Range, read_space
from adapterlab.sweeping import sweep

SHORT = ["optim.max_steps=4", "optim.warmup_ratio=0", "log.plot=false"]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.chdir(furnish(tmp_path))
    return tmp_path


def test_every_combination_is_run_and_the_best_recipe_kept(workshop):
    grid = ["optim.lr=1e-9,1e-2", "adapter.r=2,4"]
    result = sweep("tiny.yaml", *SHORT, "optim.max_steps=80", grid=grid)
    settings = [trial.settings for trial in result.trials]
    assert settings == [{"optim.lr": lr, "adapter.r": r} for lr in ("1e-9", "1e-2") for r in ("2", "4")]
    assert result.best.settings["optim.lr"] == "1e-2"
    assert result.best.value == max(trial.value for trial in result.trials)
    best = load_recipe(result.folder / "best.yaml")
    assert best.optim.lr == 1e-2
    assert {path.name for path in result.folder.glob("trial-*")} == {f"trial-00{n}" for n in range(4)}
    assert all((path / "report.md").exists() for path in result.folder.glob("trial-*"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return language_recipes(tmp_path_factory.mktemp("language"))


@pytest.mark.parametrize("name", ["instruction", "seq2seq", "masked_lm", "causal_lm", "streamed"])
def test_tasks_on_language_are_swept_by_perplexity(recipes, name):
    result = sweep(recipes[name], *SHORT, grid=["optim.lr=1e-9,1e-2"])
    slow, quick = result.trials
    assert result.metric == "perplexity"
    assert quick.value < slow.value
    assert result.best == quick


def test_a_task_that_writes_is_swept_by_what_it_writes(recipes, tmp_path, monkeypatch):
    """Here more is better; and an option of the task is tried, too."""
    monkeypatch.chdir(tmp_path)
    changes = ["task.generate_eval=8", "task.metrics=[chrf]", "optim.max_steps=12", "run.dir=runs/writes"]
    result = sweep(recipes["seq2seq"], *SHORT, *changes, "optim.lr=3e-2", grid=["task.max_new_tokens=1,8"])
    assert result.metric == "chrf"
    assert result.best.value == max(trial.value for trial in result.trials) > 0


def test_a_failing_trial_is_reported_and_the_others_go_on(workshop):
    grid = ["adapter.target_modules=[nothing_here],all-linear"]
    call = ["sweep", "tiny.yaml", *SHORT, "--grid", *grid]
    result = CliRunner().invoke(app, call, prog_name="adapterlab")
    assert result.exit_code == 0, result.output
    assert "trial 0: adapter.target_modules=[nothing_here]: failed" in result.stderr
    assert "nothing_here" in result.stderr
    assert "next: adapterlab train runs/tiny-sweep/best.yaml" in result.stderr
    lines = [json.loads(line) for line in Path("runs/tiny-sweep/trials.jsonl").read_text().splitlines()]
    assert [line["value"] is None for line in lines] == [True, False]


def test_optuna_proposes_within_the_ranges_and_a_stopped_sweep_goes_on(workshop):
    grid = ["optim.lr=1e-4..1e-1", "adapter.r=2..8"]
    first = sweep("tiny.yaml", *SHORT, grid=grid, trials=3)
    for trial in first.trials:
        assert 1e-4 <= float(trial.settings["optim.lr"]) <= 1e-1
        assert 2 <= int(trial.settings["adapter.r"]) <= 8
    with pytest.raises(RunFolderError, match=r"holds a sweep already.*--resume"):
        sweep("tiny.yaml", *SHORT, grid=grid, trials=3)
    with pytest.raises(RunFolderError, match="another grid"):
        sweep("tiny.yaml", *SHORT, grid=["optim.lr=1e-4..1e-2"], trials=3, resume=True)
    journal = first.folder / "trials.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    finished = (first.folder / "trial-001" / "report.md").stat().st_mtime_ns
    again = sweep("tiny.yaml", *SHORT, grid=grid, trials=3, resume=True)
    assert again.trials[:2] == first.trials[:2]
    assert (first.folder / "trial-001" / "report.md").stat().st_mtime_ns == finished, "not run again"
    assert len(again.trials) == 3
    assert again.trials[2].value is not None


def test_trials_alone_search_the_rate(workshop):
    result = sweep("tiny.yaml", *SHORT, trials=2)
    assert all(2e-3 <= float(trial.settings["optim.lr"]) <= 5e-2 for trial in result.trials)


def test_space_as_written():
    space = read_space(["a.b=1..8", "c=0.1..0.5", "d=[x,y],all", "e=1"])
    assert space == {
        "a.b": Range(1, 8), "c": Range(0.1, 0.5), "d": Choices(("[x,y]", "all")), "e": Choices(("1",)),
    }  # fmt: skip
    assert space["a.b"].whole
    assert not space["c"].whole


@pytest.mark.parametrize(
    ("grid", "trials", "message"),
    [
        (["optim.lr"], None, "--grid optim.lr: write KEY=A,B,C"),
        (["optim.lr=1,2", "optim.lr=3"], None, "is there twice"),
        (["optim.lr=high..low"], 3, "no range of numbers"),
        (["optim.lr=2..1"], 3, "ends before it begins"),
        (["optim.lr=1e-4..1e-2"], None, "a range has no list of values"),
        ([], None, "nothing to try"),
    ],
)
def test_what_can_not_be_swept_is_said_before_anything_runs(workshop, grid, trials, message):
    with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
        sweep("tiny.yaml", grid=grid, trials=trials)
    assert not list(Path("runs").glob("*")) if Path("runs").exists() else True
