"""A run that is stopped and resumed; a run on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONFIGS
from launching import launch_two
from safetensors.torch import load_file

import adapterlab

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a tiny BERT and a separable data set; returns a recipe as a dict."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("workshop")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "a", "the", "plot", "so"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    transformers.BertModel(CONFIGS["bert"]()).save_pretrained(folder / "bert")
    lines = [f"{'good' if i % 2 else 'bad'} film {'very ' * (i % 5)}{words[5 + i % 8]} plot {i}" for i in range(120)]
    rows = "\n".join(f"{line},{'pos' if i % 2 else 'neg'}" for i, line in enumerate(lines))
    (folder / "train.csv").write_text(f"text,label\n{rows}\n")
    return {
        "version": 1,
        "model": {"name": str(folder / "bert")},
        "adapter": {"method": "lora"},
        "task": {"type": "classification"},
        "data": {"train": str(folder / "train.csv"), "eval": 0.2, "max_length": 16},
        "optim": {"lr": 1e-2, "batch_size": 8, "epochs": 4, "precision": "fp32"},
    }


class StopTheRunError(Exception):
    """What kills the run in the middle."""


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "bottleneck", "prompt", "p_tuning", "ia3"])
def test_a_resumed_run_is_the_run_it_would_have_been(workshop, tmp_path, monkeypatch, method):
    recipe = {**workshop, "adapter": {"method": method}}
    adapterlab.run({**recipe, "run": {"dir": str(tmp_path / "whole")}})

    from adapterlab.training.callbacks import Narrator

    def die(self, args, state, control, **kwargs):
        if state.global_step == 30:
            raise StopTheRunError

    stopped = {**recipe, "run": {"dir": str(tmp_path / "stopped")}}
    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "on_step_end", die)
        with pytest.raises(StopTheRunError):
            adapterlab.run(stopped)
    with pytest.raises(adapterlab.AdapterLabError, match="--resume auto"):
        adapterlab.run(stopped)
    adapterlab.run(stopped, resume="auto")

    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    assert steps[0] == steps[1]


def test_a_run_keeps_its_splits_and_goes_on_with_no_others(workshop, tmp_path, monkeypatch):
    from adapterlab.training.callbacks import Narrator

    def die(self, args, state, control, **kwargs):
        if state.global_step == 30:
            raise StopTheRunError

    rows = tmp_path / "rows.csv"
    content = Path(workshop["data"]["train"]).read_text()
    rows.write_text(content)
    run = tmp_path / "run"
    recipe = {**workshop, "data": {**workshop["data"], "train": str(rows)}, "run": {"dir": str(run)}}
    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "on_step_end", die)
        with pytest.raises(StopTheRunError):
            adapterlab.run(recipe)
    record = json.loads((run / "splits.json").read_text())["splits"]
    assert {name: split["rows"] for name, split in record.items()} == {"train": 96, "eval": 24}
    assert record["eval"]["files"][0]["file"] == "rows.csv"
    rows.write_text(content.replace("plot 119", "plot 999"))
    with pytest.raises(adapterlab.AdapterLabError, match=r"splits\.json' records: 'rows\.csv' changed"):
        adapterlab.run(recipe, resume="auto")
    rows.write_text(content)
    adapterlab.run(recipe, resume="auto")
    report = (run / "report.md").read_text()
    assert "| train | 96 | " in report
    assert "| eval | 12 (50.0%) | 12 (50.0%) |" in report


def test_replace_keeps_what_is_not_the_runs(workshop, tmp_path):
    recipe = {**workshop, "run": {"dir": str(tmp_path / "run")}}
    adapterlab.run(recipe, "optim.max_steps=4")
    (tmp_path / "run" / "my-notes.txt").write_text("mine")
    with pytest.raises(adapterlab.AdapterLabError, match="--replace"):
        adapterlab.run(recipe, "optim.max_steps=4")
    adapterlab.run(recipe, "optim.max_steps=4", replace=True)
    assert (tmp_path / "run" / "my-notes.txt").read_text() == "mine"


def test_a_failed_replace_leaves_the_old_run(workshop, tmp_path):
    recipe = {**workshop, "run": {"dir": str(tmp_path / "run")}}
    adapterlab.run(recipe, "optim.max_steps=4")
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    with pytest.raises(adapterlab.AdapterLabError, match="nowhere"):
        adapterlab.run(recipe, "data.train=nowhere.csv", replace=True)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_what_one_learns(workshop, tmp_path, accumulate):
    """`accelerate launch -m adapterlab train` on two CPU processes: one report, the same losses as one process."""
    import yaml

    recipe = {**workshop, "adapter": {"method": "adalora", "dropout": 0.0}}
    recipe["optim"] = {**recipe["optim"], "accumulate": accumulate, "epochs": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    said = launch_two(tmp_path, "-m", "adapterlab", "train", "small.yaml", "optim.batch_size=4")
    assert said.count("Results on eval") == 1
    assert "on 2 processes" in said
    adapterlab.run(recipe, f"run.dir={tmp_path / 'one'}")
    histories = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("runs/small", "one")
    ]
    two, one = ([row["eval_loss"] for row in rows if "eval_loss" in row] for rows in histories)
    assert len(two) == len(one) == 2
    assert two == pytest.approx(one, abs=0.15)
    assert (tmp_path / "runs/small/adapter/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("override", ["adapter.tinit=500", "data.train=nowhere.csv", "optim.lr=1e30"])
def test_a_run_that_fails_before_its_first_checkpoint_leaves_what_was_there(workshop, tmp_path, override):
    recipe = {**workshop, "adapter": {"method": "adalora"}, "run": {"dir": str(tmp_path / "run")}}
    with pytest.raises(adapterlab.AdapterLabError):
        adapterlab.run(recipe, override)
    assert not (tmp_path / "run").exists()
    adapterlab.run(recipe, "optim.max_steps=4")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(adapterlab.AdapterLabError):
        adapterlab.run(recipe, override, replace=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files


def test_what_cannot_be_resumed(workshop, tmp_path):
    recipe = {**workshop, "run": {"dir": str(tmp_path / "run")}}
    adapterlab.run(recipe, "optim.max_steps=4")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for overrides, message in (
        (["adapter.r=4", "optim.max_steps=8"], "options: r was 8, is 4"),
        (["adapter.method=bottleneck", "optim.max_steps=8"], "method: was 'lora', is 'bottleneck'"),
        (["optim.max_steps=4"], "the run is complete"),
    ):
        with pytest.raises(adapterlab.AdapterLabError, match=message):
            adapterlab.run(recipe, *overrides, resume="auto")
    adapterlab.run({**recipe, "run": {"dir": str(tmp_path / "other")}}, "optim.max_steps=4")
    with pytest.raises(adapterlab.AdapterLabError, match="holds another run"):
        adapterlab.run(recipe, "optim.max_steps=8", resume=str(tmp_path / "other" / "checkpoints" / "checkpoint-4"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    adapterlab.run(recipe, "optim.max_steps=8", resume="auto")


def test_a_run_can_be_used_from_another_folder(workshop, tmp_path, monkeypatch):
    from adapterlab.predicting import Predictor

    recipe = {**workshop, "model": {"name": "bert"}, "run": {"dir": str(tmp_path / "run")}}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").symlink_to(workshop["model"]["name"])
    adapterlab.run(recipe, "optim.max_steps=2")
    monkeypatch.chdir("/")
    assert next(Predictor(tmp_path / "run").predict(["good film"]))["label"] in ("neg", "pos")


def test_a_run_folder_that_cannot_be_written(workshop):
    with pytest.raises(adapterlab.AdapterLabError, match=r"run\.dir: '/proc/run' can't be written"):
        adapterlab.run({**workshop, "run": {"dir": "/proc/run"}})
