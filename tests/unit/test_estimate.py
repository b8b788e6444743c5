"""`adapterlab estimate`: what a run will take. That its times are right, benchmarks/estimate.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from language_workshop import language_recipes
from tiny_workshop import furnish
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app
from adapterlab.errors import DataError
from adapterlab.estimating import estimate
from adapterlab.tasks.instruction import Instruction


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.chdir(furnish(tmp_path))
    return tmp_path


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "bottleneck"])
def test_counts_are_those_of_the_run(workshop, method):
    before = {path.name for path in Path().iterdir()}
    changes = [f"adapter.method={method}", "optim.epochs=40", "eval.every=20", "eval.patience=2"]
    found = estimate("tiny.yaml", *changes)
    assert {path.name for path in Path().iterdir()} == before, "nothing is written"
    result = adapterlab.run("tiny.yaml", *changes, "optim.max_steps=20")
    assert (found.trained, found.total, found.method) == (result.trained, result.total, method)
    assert found.steps == 200
    assert 0 < found.evaluation_seconds < found.training_seconds
    assert found.training_seconds > 200 * found.step_seconds
    assert sum(found.memory.values()) == found.peak_memory


def test_a_run_that_can_not_start_has_no_estimate(workshop):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        estimate("tiny.yaml", "data.train=nowhere.csv")


def test_the_command_prints_it(workshop):
    result = CliRunner().invoke(app, ["estimate", "tiny.yaml", "optim.epochs=30"], prog_name="adapterlab")
    assert result.exit_code == 0, result.output
    for part in ("parameters", "steps", "150, ", "training, ", "at the peak", "optimizer", "adapter on disk"):
        assert part in result.stdout


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return language_recipes(tmp_path_factory.mktemp("language"))


@pytest.mark.parametrize("name", ["instruction", "seq2seq", "masked_lm", "causal_lm", "streamed"])
def test_tasks_on_language_have_an_estimate(recipes, name):
    changes = ["optim.max_steps=100", "eval.every=10", *(["task.packing=true"] if name == "instruction" else [])]
    found = estimate(recipes[name], *changes)
    counts = adapterlab.run(recipes[name], *changes, "optim.max_steps=1")
    assert (found.trained, found.total, found.steps) == (counts.trained, counts.total, 100)
    assert found.training_seconds == pytest.approx(100 * found.step_seconds + found.evaluation_seconds)
    assert found.evaluation_seconds > 0


@pytest.mark.parametrize("wanted", [0, 4])
def test_evaluations_are_timed_as_they_are_while_training(recipes, wanted, monkeypatch):
    """Most runs write no texts before the end: then no time for it is counted."""
    written = []
    generate = Instruction.generate
    monkeypatch.setattr(Instruction, "generate", lambda *args: written.append(1) or generate(*args))
    estimate(recipes["instruction"], f"task.generate_eval={wanted}")
    assert bool(written) == (wanted > 0)
