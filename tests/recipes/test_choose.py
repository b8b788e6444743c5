"""The recipe for multiple choice really runs, with every method, on sentences of Python's language reference."""

from __future__ import annotations

import pytest
from reference import continuations
from small import METHODS, MINILM, small_bert, write

import adapterlab
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["choose/lora-bert"]
SHORT = [
    "optim.max_steps=4", "optim.batch_size=4", "optim.precision=fp32", "log.plot=false", "data.max_length=48",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("method", METHODS)
def test_recipe_runs(method, model, tmp_path):
    rows = continuations()[:70]
    data, run = write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    result = adapterlab.run(
        RECIPES[0], *SHORT, *METHODS[method], f"model.name={model}", f"data.train={data}", "data.test=0.3",
        f"run.dir={run}",
    )  # fmt: skip
    assert set(result.baselines) == {"chance"}
    assert 1 / 4 < result.baselines["chance"]["accuracy"] < 1 / 3, "rows have three or four choices"
    measured = evaluate(run)
    assert measured == {"rows": 21, "accuracy": pytest.approx(result.metrics["accuracy"])}
    together = list(Predictor(run / "adapter").predict(rows, batch_size=16))
    alone = Predictor(run).predict(rows[:8], batch_size=1)
    for row, answer, same in zip(rows, together, alone, strict=False):
        assert answer["choices"] == row["choices"]
        assert answer["choice"] == row["choices"][answer["index"]]
        assert answer["name"] == "ABCD"[answer["index"]]
        assert list(answer["probabilities"]) == list("ABCD"[: len(row["choices"])])
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert same["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-4)


def test_it_learns(tmp_path):
    """Which sentence follows: after 150 rows far above chance."""
    data = write(tmp_path / "rows.jsonl", continuations(choices=3)[:220])
    result = adapterlab.run(
        RECIPES[0], f"model.name={MINILM}", f"data.train={data}", "data.test=0.25", "data.max_length=40",
        "optim={lr: 2e-3, epochs: 2, batch_size: 8}", "log.plot=false", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.metrics["accuracy"] >= result.baselines["chance"]["accuracy"] + 0.15
