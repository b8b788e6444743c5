"""The recipe for question answering really runs, with every method, on questions to Python's language reference."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reference import questions
from small import METHODS, MINILM, small_bert, write

import adapterlab
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["qa/lora-bert"]
SHORT = ["optim.max_steps=4", "optim.batch_size=8", "log.plot=false", "data.max_length=128", "task.stride=16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def rows():
    return [row for row in questions(unanswerable=0.3) if len(row["question"]) < 200][:80]


def squad(rows):
    """Rows as SQuAD 2.0's nested file has them, an article for each."""
    qas = [
        {
            "id": str(number), "question": row["question"], "is_impossible": not row["answers"],
            "answers": [{"text": one["text"], "answer_start": one["start"]} for one in row["answers"]],
        }
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return {
        "version": "v2.0",
        "data": [
            {"title": "", "paragraphs": [{"context": row["context"], "qas": [qa]}]}
            for row, qa in zip(rows, qas, strict=True)
        ],
    }


@pytest.mark.parametrize("method", METHODS)
def test_recipe_runs(method, model, rows, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(squad(rows[:50])))
    dev = write(tmp_path / "dev.jsonl", rows[50:])
    run = tmp_path / "run"
    result = adapterlab.run(
        RECIPES[0], *SHORT, *METHODS[method], f"model.name={model}", f"data.train={tmp_path / 'train.json'}",
        f"data.eval={dev}", f"run.dir={run}",
    )  # fmt: skip
    assert set(result.baselines) == {"no answer", "nearest sentence", "untouched backbone"}
    none = sum(not row["answers"] for row in rows[50:]) / 30
    assert result.baselines["no answer"]["exact_match"] == pytest.approx(none)
    assert {"exact_match", "answer_f1", "has_answer_exact_match", "no_answer_answer_f1"} <= set(result.metrics)
    assert "With and without an answer" in (run / "report.md").read_text()
    assert "windows, which share 16 tokens" in (run / "report.md").read_text()

    measured = evaluate(run)
    assert measured.pop("rows") == 30
    assert measured == pytest.approx(result.metrics, abs=0.07), "the table's figures, but for bf16"
    for row, answer in zip(rows, Predictor(run / "adapter").predict(rows, batch_size=5), strict=False):
        assert answer["context"] == row["context"]
        assert 0 < answer["score"] <= 1
        if answer["answer"]:
            assert answer["context"][answer["start"] : answer["end"]] == answer["answer"]
        else:
            assert answer["start"] is answer["end"] is None


def test_it_learns_and_answers_on_the_command_line(tmp_path):
    short = [row for row in questions() if len(row["context"]) < 200 and len(row["question"]) < 150][:160]
    data = write(tmp_path / "rows.jsonl", short)
    result = adapterlab.run(
        RECIPES[0], f"model.name={MINILM}", f"data.train={data}", "data.eval=0.2", "data.max_length=80",
        "task.stride=16", "optim={lr: 3e-3, epochs: 3, batch_size: 16}", "log.plot=false",
        f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.metrics["answer_f1"] >= result.baselines["nearest sentence"]["answer_f1"] + 0.1
    assert result.metrics["answer_f1"] >= result.baselines["untouched backbone"]["answer_f1"] + 0.15
    row = {key: short[0][key] for key in ("question", "context")}
    command = [sys.executable, "-m", "adapterlab", "predict", str(tmp_path / "run")]
    done = subprocess.run([*command, json.dumps(row), "--format", "jsonl"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert row["context"][answer["start"] : answer["end"]] == answer["answer"] != ""
    refused = subprocess.run([*command, "What is it?"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "a qa task reads question and context" in " ".join(refused.stderr.split())
