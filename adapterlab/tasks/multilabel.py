"""Multilabel classification: any number of classes per text, or pair of texts, none included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from adapterlab.errors import DataError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.labels import LabelledTask, WeightedOptions, tell
from adapterlab.tasks.sentence import as_text, finite, fit_probe

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_TRUTHS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


def _check_threshold(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1):
        return value
    raise ValueError("must be auto, or a probability between 0 and 1, for example 0.5")


@register_task("multilabel")
class Multilabel(LabelledTask):
    """Learns for each of several classes whether a text, or a pair of texts, belongs to it."""

    class Options(WeightedOptions):
        """What `task` may hold beside type and metrics."""

        separator: str | None = Field(
            None, min_length=1, description="What stands between the labels of a row, where they are one text."
        )
        threshold: Annotated[Literal["auto"] | float, BeforeValidator(_check_threshold)] = Field(
            0.5,
            description="The probability from which on a label is given. auto: for each label the one with the best "
            "F1 on the eval rows, chosen after training and kept with the adapter.",
        )

    summary = "any number of classes per text, or per pair of texts"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text",
        "text_pair": "the second text, of a task on pairs",
        "label": "its labels: a list, a text of them (task.separator), or a 0/1 column for each",
    }
    strata = "label"
    default_metrics = ("f1", "f1_micro")

    def clean_label(self, value: Any) -> list[str]:
        """Labels are a list of names, each once; no value is no label."""
        if isinstance(value, dict):
            return [label for label, given in value.items() if _is_true(given, label)]
        if value is None or isinstance(value, str | int | float):
            text = as_text(value, "label", self.type) or ""
            value = text.split(self.options.separator) if self.options.separator else [text]
        if any(isinstance(label, list | dict) for label in value):
            raise ValueError("holds a list of lists or mappings where a list of labels is needed")
        labels = [(as_text(label, "label", self.type) or "").strip() for label in value]
        return [label for label in dict.fromkeys(labels) if label]

    def fit(self, splits: Splits) -> None:
        """Take the class names from train, unless they are given; refuse labels that train never saw."""
        super().fit(splits)
        rows, given = len(splits.train), list(splits.train["label"])
        counts = self.learn_labels(given)
        for name, split in splits.named.items():
            self.check_labels(split, name)
        none = sum(not labels for labels in given)
        self.note(f"{tell(self, counts, rows)} A row has {counts.total() / rows:.2f} on average; {none:,} have none.")
        weights = self.options.class_weights
        if weights == "balanced":
            weights = {label: (rows - n) / n for label, n in counts.items() if n < rows}
        if weights is not None:
            self.keep_weights(weights)
        odds = [max(counts[label], 0.5) / max(rows - counts[label], 0.5) for label in self.labels]
        self._log_odds = np.log(np.multiply(odds, self.learned.get("class_weights", 1.0)))

    def begin(self, model: Any) -> None:
        """Let the head's bias begin at the labels' log-odds in train (Lin et al. 2017).

        From zero, training would first learn that most labels are rare, and the quickest way to that is a backbone
        that tells no text from another.
        """
        from adapterlab.backbones import describe
        from adapterlab.heads import label_output

        path = label_output(model, describe(model))
        bias = model.get_submodule(path).bias if path is not None else None
        if bias is not None and not bias.any():  # else it was trained before
            bias.data.copy_(bias.new_tensor(self._log_odds))

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse rows with a label that the task doesn't know, and those on which ranking can't be measured."""
        given = list(dataset["label"])
        counts = Counter(label for labels in given for label in set(labels))
        self.refuse_strangers(given, name)
        if name != "train" and "roc_auc" in self.metrics and not any(n < len(dataset) for n in counts.values()):
            raise DataError(
                f"{name} has no label that some rows have and others haven't, so roc_auc can't be measured on it. "
                "Use more rows, or leave roc_auc out of task.metrics."
            )

    def targets(self, labels: Sequence[Any]) -> list[Any]:
        """Return a row of ones and zeros each: floats, as the loss wants them."""
        return [[float(label in given) for label in self.labels] for given in labels]

    def loss(self, logits: Any, targets: Any) -> Any:
        """Binary cross-entropy over all labels; a label's weight is that of the rows that have it."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        weights = self.learned.get("class_weights")
        pos_weight = None if weights is None else logits.new_tensor(weights)
        return binary_cross_entropy_with_logits(logits, targets.float(), pos_weight=pos_weight)

    def model_kwargs(self) -> dict[str, Any]:
        """Return the names of the classes, and that they don't exclude each other."""
        return {**super().model_kwargs(), "problem_type": "multi_label_classification"}

    def settle(self, seen: Callable[[], Predictions]) -> None:
        """Choose the thresholds on the eval rows, if they are to be chosen."""
        if self.options.threshold != "auto":
            return
        eval_rows = seen()
        found = best_thresholds(_sigmoid(eval_rows.outputs), _truth(eval_rows.encoded))
        self.learned["thresholds"] = found.tolist()
        told = ", ".join(f"{label} {value:.2f}" for label, value in zip(self.labels[:12], found, strict=False))
        self.note(f"Thresholds, chosen on the eval rows (whose own scores they flatter): {told}.")

    def thresholds(self, scores: Any = None, truth: Any = None) -> np.ndarray[Any, Any]:
        """Return the probability from which on each label is given.

        While they aren't chosen yet (`auto`, before training is over), they are the best for the scores given.
        """
        if "thresholds" in self.learned:
            return np.asarray(self.learned["thresholds"], dtype=np.float64)
        if self.options.threshold == "auto" and scores is not None:
            return best_thresholds(scores, truth)
        value = 0.5 if self.options.threshold == "auto" else self.options.threshold
        return np.full(len(self.labels), float(value))

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the task's metrics of the labels above their thresholds."""
        scores, truth = _sigmoid(seen.outputs), _truth(seen.encoded)
        return self.score(_above(scores, self.thresholds(scores, truth)), truth, scores)

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the labels above their thresholds and the probability of each, one dict a row."""
        self.need_fit()
        scores = _sigmoid(seen.outputs)
        answers = []
        for row, given in zip(scores, _above(scores, self.thresholds()), strict=True):
            labels = [label for label, there in zip(self.labels, given, strict=True) if there]
            named = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append({"labels": labels, "probabilities": named})
        return answers

    def flat(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Write the labels as one text, and give each one's probability a column of its own."""
        joined = (self.options.separator or ", ").join(answer["labels"])
        shares = {f"p_{label}": share for label, share in answer["probabilities"].items()}
        return {**{key: value for key, value in answer.items() if key != "probabilities"}, "labels": joined, **shares}

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with the labels' shares in train, and with logistic regressions on the frozen features.

        Where the adapter's thresholds are chosen on the eval rows, so are theirs.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        rows = evidence.encoded(evidence.split)
        shares = _truth(evidence.encoded("train")).mean(axis=0)
        one = OneVsRestClassifier(LogisticRegression(max_iter=300))
        probe = fit_probe(self, evidence, one, "a logistic regression for each label")
        rivals: dict[str, Callable[[Any], Any]] = {
            "labels' shares": lambda rows: np.tile(shares, (len(rows), 1)),
            "untouched backbone": lambda rows: probe.predict_proba(evidence.features(rows)),
        }
        found = {}
        for name, scores in rivals.items():
            given, thresholds = scores(rows), self.thresholds()
            if self.options.threshold == "auto":
                tuning = evidence.encoded("eval")
                thresholds = best_thresholds(given if evidence.split == "eval" else scores(tuning), _truth(tuning))
            found[name] = self.score(_above(given, thresholds), _truth(rows), given)
        return found

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show each label's threshold, precision, recall, F1 and size."""
        from sklearn.metrics import precision_recall_fscore_support

        scores, truth = _sigmoid(seen.outputs), _truth(seen.encoded)
        thresholds = self.thresholds()
        measured = precision_recall_fscore_support(truth, _above(scores, thresholds), average=None, zero_division=0)
        body = [
            [name, f"{threshold:.2f}", f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", f"{n:,}"]
            for name, threshold, p, r, f, n in zip(self.labels, thresholds, *measured, strict=True)
        ]
        return [ReportTable("Each label", ["label", "threshold", "precision", "recall", "F1", "rows"], body)]


def best_thresholds(scores: Any, truth: Any) -> np.ndarray[Any, Any]:
    """Return for each label the threshold with the best F1; 0.5 where no row, or every row, has it.

    A threshold lies halfway between the lowest score that it takes in and the next one below.
    """
    from sklearn.metrics import precision_recall_curve

    chosen = np.full(scores.shape[1], 0.5)
    for label in range(scores.shape[1]):
        if 0 < truth[:, label].sum() < len(truth):
            precision, recall, steps = precision_recall_curve(truth[:, label], scores[:, label])
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            best = int(f1[:-1].argmax())
            chosen[label] = (steps[best] + (steps[best - 1] if best else 0.0)) / 2
    return chosen


def _above(scores: Any, thresholds: Any) -> Any:
    return (scores >= thresholds).astype(int)


def _truth(encoded: Any) -> Any:
    return np.asarray(encoded["labels"], dtype=np.float64).astype(int)


def _sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(finite(logits), -500, 500)))


def _is_true(value: Any, label: str) -> bool:
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if text not in _TRUTHS:
        raise ValueError(f"'{label}' holds {value!r} where 0 or 1 is needed")
    return _TRUTHS[text]
