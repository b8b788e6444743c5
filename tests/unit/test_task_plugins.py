"""A task from outside: an installed distribution, in recipes, on the command line, on rows to predict."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import tiny_bert

EXAMPLE = Path(__file__).parents[1] / "task_plugin"
WORDS = ("statement", "function", "class")  # that the tiny backbone knows
ROWS = [(f"the {word} was {word} {i}", stars) for i in range(8) for stars, word in enumerate(WORDS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the installed example, a backbone, rows and a recipe; place(verb, ...) runs adapterlab in it."""
    folder = tmp_path_factory.mktemp("task")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(EXAMPLE)], check=True, capture_output=True)
    tiny_bert(folder / "bert")
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    recipe = {
        "version": 1,
        "run": {"dir": "run"},
        "model": {"name": "bert"},
        "adapter": {"method": "lora", "r": 4},
        "task": {"type": "ordinal", "distance": 2.0},
        "data": {"train": "rows.csv", "eval": 0.25, "test": "rows.csv", "max_length": 16},
        "optim": {"lr": 1e-2, "batch_size": 4, "max_steps": 60, "precision": "fp32"},
        "log": {"plot": False},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    path = os.pathsep.join([str(folder / "site"), *sys.path])

    def call(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "adapterlab", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    call.folder = folder
    return call


def test_it_is_listed_described_and_checked(place):
    listed = place("tasks")
    assert "one of several classes that have an order" in listed.stdout
    assert "failed" not in listed.stdout
    described = place("tasks", "ordinal").stdout
    for part in ("distance", "beside the cross-entropy", "steps", "mean distance", "text_pair", "class_weights"):
        assert part in described
    wrong = place("validate", "recipe.yaml", "task.distanse=3", "task.metrics=[stps]")
    assert "Did you mean 'distance'?" in wrong.stderr
    assert "Did you mean 'steps'?" in wrong.stderr


def test_it_trains_evaluates_and_predicts(place):
    ran = place("train", "recipe.yaml")
    assert ran.returncode == 0, ran.stderr
    report = (place.folder / "run" / "report.md").read_text()
    assert "steps" in report
    measured = place("eval", "run")
    steps = float(re.search(r"steps\s+([\d.]+)", measured.stdout)[1])
    assert 0 <= steps < 2 / 3, "always to say the class in the middle is off by two thirds of a class"
    predicted = place("predict", "run", "the statement was statement", "the class was class", "--format", "jsonl")
    assert predicted.returncode == 0, predicted.stderr
    answers = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert 0 <= answers[0]["place"] < answers[1]["place"] <= 2


def test_the_page_about_plugins_shows_the_example_as_it_is():
    page = (EXAMPLE.parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    shown = (EXAMPLE / "adapterlab_ordinal.py").read_text(encoding="utf-8")
    assert f"```python\n{shown}```" in page
