"""Classification: one text, or a pair of texts, and one class out of several."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.errors import DataError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.labels import LabelledTask, tell
from adapterlab.tasks.sentence import as_text, finite, fit_probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from adapterlab.data import Splits

_MATRIX = 12  # with more classes than this, the report lists the commonest confusions instead of the matrix


@register_task("classification")
class Classification(LabelledTask):
    """Learns which of several classes a text, or a pair of texts, belongs to."""

    summary = "one class per text, or per pair of texts"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text",
        "text_pair": "the second text, of a task on pairs",
        "label": "its class",
    }
    strata = "label"
    default_metrics = ("accuracy", "f1")

    def clean_label(self, value: Any) -> str | None:
        """A class name is text without space around it."""
        text = as_text(value, "label", self.type)
        return text and text.strip()

    def fit(self, splits: Splits) -> None:
        """Take the class names from train, unless they are given; refuse labels that train never saw."""
        super().fit(splits)
        counts, rows = self.learn_labels([[label] for label in splits.train["label"]]), len(splits.train)
        for name, split in splits.named.items():
            self.check_labels(split, name)
        self.note(tell(self, counts, rows))
        given = self.options.class_weights
        if given is not None:
            # Scaled so that the mean row weighs 1, which keeps the loss and the learning rate to their usual size.
            raw = {label: 1 / n if given == "balanced" else given.get(label, 1.0) for label, n in counts.items()}
            mean = sum(raw[label] * n for label, n in counts.items()) / rows
            self.keep_weights({label: weight / mean for label, weight in raw.items()})

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse rows whose label the task doesn't know, and rows of one class where ranking them is measured."""
        counts = Counter(dataset["label"])
        self.refuse_strangers([[label] for label in dataset["label"]], name)
        if name != "train" and "roc_auc" in self.metrics and len(counts) < 2:
            raise DataError(
                f"{name} has rows of only one class, '{next(iter(counts))}', which roc_auc can't be measured on. "
                "Use more rows, or leave roc_auc out of task.metrics."
            )

    def targets(self, labels: Sequence[Any]) -> list[Any]:
        """Return the numbers of classes."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [numbers[label] for label in labels]

    def loss(self, logits: Any, targets: Any) -> Any:
        """Cross-entropy, of each row times its class's weight."""
        from torch.nn.functional import cross_entropy

        return self.weighted(cross_entropy(logits, targets, reduction="none"), targets)

    def spread(self, outputs: Any, batch: dict[str, Any], items: Any = None) -> Any:
        """See `Task.spread`; rows weigh as in the loss."""
        return self.weighted(-outputs.logits.float().log_softmax(-1).mean(-1), batch["labels"])

    def weighted(self, losses: Any, targets: Any) -> Any:
        """Return the mean of the rows' losses, each times its class's weight."""
        # Not torch's own weighted mean: divided by the batch's weights, it would depend on how rows are batched.
        weights = self.learned.get("class_weights")
        return losses.mean() if weights is None else (losses * losses.new_tensor(weights)[targets]).mean()

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the task's metrics; a model that gives NaN is told apart from a bad one."""
        probabilities = _softmax(seen.outputs)
        return self.score(probabilities.argmax(axis=-1), seen.encoded["labels"], probabilities)

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return label, score and the probability of every class, one dict a row."""
        self.need_fit()
        answers = []
        for row in _softmax(seen.outputs):
            best = row.argmax()
            named = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append({"label": self.labels[best], "score": float(row[best]), "probabilities": named})
        return answers

    def flat(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Give each class's probability a column of its own."""
        shares = {f"p_{label}": share for label, share in answer["probabilities"].items()}
        return {key: value for key, value in answer.items() if key != "probabilities"} | shares

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with train's most frequent class, and with a logistic regression on the frozen features."""
        from sklearn.linear_model import LogisticRegression

        rows = evidence.encoded(evidence.split)
        counts = Counter(evidence.splits.train["label"])
        shares = np.array([counts[label] for label in self.labels]) / counts.total()
        probe = fit_probe(self, evidence, LogisticRegression(max_iter=300), "a logistic regression")
        probed = np.zeros((len(rows), len(self.labels)))
        probed[:, probe.classes_] = probe.predict_proba(evidence.features(rows))
        return {
            name: self.score(scores.argmax(axis=-1), rows["labels"], scores)
            for name, scores in (
                ("majority class", np.tile(shares, (len(rows), 1))),
                ("untouched backbone", probed),
            )
        }

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show each class's precision, recall, F1 and size, and the confusion matrix."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        numbers = list(range(len(self.labels)))
        true, predicted = np.asarray(seen.encoded["labels"]), _softmax(seen.outputs).argmax(axis=-1)
        scores = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0)
        per_class = [
            [name, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", f"{n:,}"]
            for name, p, r, f, n in zip(self.labels, *scores, strict=True)
        ]
        return [
            ReportTable("Each class", ["class", "precision", "recall", "F1", "rows"], per_class),
            self._confusions(confusion_matrix(true, predicted, labels=numbers)),
        ]

    def _confusions(self, matrix: np.ndarray[Any, Any]) -> ReportTable:
        if len(self.labels) <= _MATRIX:
            body = [
                [name, *(f"**{n:,}**" if i == j else f"{n:,}" for j, n in enumerate(counts))]
                for i, (name, counts) in enumerate(zip(self.labels, matrix, strict=True))
            ]
            said = "A row is the true class, a column what was predicted."
            return ReportTable("Confusion matrix", ["true \\ predicted", *self.labels], body, said)
        pairs = [(n, i, j) for i, counts in enumerate(matrix) for j, n in enumerate(counts) if i != j and n]
        body = [[self.labels[i], self.labels[j], f"{n:,}"] for n, i, j in sorted(pairs, reverse=True)[:_MATRIX]]
        return ReportTable("Commonest confusions", ["true", "predicted", "rows"], body)


def _softmax(logits: Any) -> np.ndarray[Any, Any]:
    values = finite(logits)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: np.ndarray[Any, Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
