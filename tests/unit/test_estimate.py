"""`adapterlab estimate`: what a run will take. That its times are right, benchmarks/estimate.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_workshop import furnish
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app
from adapterlab.errors import DataError
from adapterlab.estimating import estimate


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
