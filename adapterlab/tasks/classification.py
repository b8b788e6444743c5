"""Text classification: one text, one class out of several."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.data.sources import bars_only_on_terminal
from adapterlab.errors import AdapterLabError, DataError, did_you_mean
from adapterlab.tasks.base import Evidence, Predictions, ReportTable, Task, register_task, spread_evenly

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_MANY = 20  # from so many classes on, a class for every other row is no class
_SHOWN = 6  # so many class names at most in a message
_MATRIX = 12  # with more classes than this, the report lists the commonest confusions instead of the matrix
_PROBE_ROWS = 2000  # training rows that the linear probe of the untouched backbone sees, at most


@register_task("classification")
class Classification(Task):
    """Learns which of several classes a text belongs to."""

    summary = "one class per text"
    columns: ClassVar[dict[str, str]] = {"text": "the text", "label": "its class"}
    inputs = ("text",)
    strata = "label"
    auto_class = "AutoModelForSequenceClassification"
    default_metrics = ("accuracy", "f1")

    def clean(self, column: str, value: Any) -> str | None:
        """Texts and class names are strings; blank ones, None and NaN are missing."""
        if isinstance(value, list | dict):
            raise ValueError(f"holds a {type(value).__name__} where classification needs one {column} per row")
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1.0 is what is left of the class 1 in a column with gaps
        text = str(value)
        if not text.strip():
            return None
        return text if column == "text" else text.strip()

    def fit(self, splits: Splits) -> None:
        """Take the class names from train, unless they are given; refuse labels that train never saw."""
        counts = Counter(splits.train["label"])
        rows = len(splits.train)
        found = ", ".join(f"'{label}'" for label in counts)
        if len(counts) < 2:
            raise DataError(
                f"train has only one class, {found}, in {rows:,} rows; classification needs two or more. "
                "Is data.columns.label the right column?"
            )
        if len(counts) > max(_MANY, rows / 2):
            raise DataError(
                f"train has {len(counts):,} different labels in {rows:,} rows ({_some(list(counts))}): "
                "that is no class per text. Is data.columns.label the right column?"
            )
        if self._labels_from == "train":
            self.labels = sorted(counts, key=_by_number)
        for name, split in splits.named.items():
            self.check_labels(split, name)
        if unused := [label for label in self.labels if label not in counts]:
            self.note(f"train has no row of {_some(unused)}: the model can't learn what nobody shows it.")
        shown = ", ".join(f"{label} {n:,} ({n / rows:.0%})" for label, n in counts.most_common(_SHOWN))
        more = f", and {len(counts) - _SHOWN} smaller ones" if len(counts) > _SHOWN else ""
        self.note(f"{len(self.labels)} classes; in train: {shown}{more}.")

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse rows whose label the task doesn't know."""
        self._need_labels()
        known, source = set(self.labels), self._labels_from
        strangers = Counter(label for label in dataset["label"] if label not in known)
        if not strangers:
            return
        fix = "Add them to data.labels" if source == "data.labels" else "Mend the labels"
        raise DataError(
            f"{name} holds labels that {source} doesn't have: {_some(list(strangers))} "
            f"({sum(strangers.values()):,} of {len(dataset):,} rows).{did_you_mean(next(iter(strangers)), known)} "
            f"{source} has: {_some(self.labels)}. {fix}, or leave those rows out."
        )

    def model_kwargs(self) -> dict[str, Any]:
        """Return the number of classes and their names, both ways."""
        self._need_labels()
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise in memory; a note says how many texts were cut."""
        self._need_labels()
        limit = min(max_length, tokenizer.model_max_length)
        if limit < max_length:
            self.note(f"data.max_length={max_length} is more than the tokenizer's {limit} tokens; {limit} it is.")
        numbers = {label: number for number, label in enumerate(self.labels)}
        cut = 0

        def tokenise(batch: dict[str, list[Any]]) -> dict[str, Any]:
            nonlocal cut
            encoded = tokenizer(batch["text"], truncation=True, max_length=limit)
            if encoded.encodings:  # a fast tokenizer knows what it cut off
                cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            else:
                cut += sum(len(ids) >= limit for ids in encoded["input_ids"])
            columns = dict(encoded)
            if "label" in batch:
                columns["labels"] = [numbers[label] for label in batch["label"]]
            return columns

        with bars_only_on_terminal():
            encoded = dataset.map(
                tokenise,
                batched=True,
                remove_columns=dataset.column_names,
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint=uuid.uuid4().hex,  # spares hashing the tokenizer for a cache that isn't used
                desc=f"Tokenising {name}",
            )
        if cut:
            share = f"{cut / len(dataset):.1%}" if cut / len(dataset) >= 0.001 else "less than 0.1%"
            self.note(f"{name}: {share} of {len(dataset):,} texts cut to {limit} tokens (data.max_length).")
        return encoded

    def spread(self, outputs: Any, batch: dict[str, Any], items: Any = None) -> Any:
        """See `Task.spread`."""
        return spread_evenly(outputs.logits)

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the task's metrics; a model that gives NaN is told apart from a bad one."""
        return self.score(_predicted(seen.outputs), seen.encoded["labels"])

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return label, score and the probability of every class, one dict a row."""
        self._need_labels()
        values = np.asarray(seen.outputs, dtype=np.float64)
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        probabilities = powers / powers.sum(axis=-1, keepdims=True)
        answers = []
        for row, best in zip(probabilities, _predicted(values), strict=True):
            named = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append({"label": self.labels[best], "score": float(row[best]), "probabilities": named})
        return answers

    def flat(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Give each class's probability a column of its own."""
        shares = {f"p_{label}": share for label, share in answer["probabilities"].items()}
        return {key: value for key, value in answer.items() if key != "probabilities"} | shares

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with train's most frequent class, and with a logistic regression on the frozen features."""
        train = evidence.encoded("train", _PROBE_ROWS)
        rows = evidence.encoded(evidence.split)
        predicted = _probe(evidence.features(train), train["labels"], evidence.features(rows))
        self.note(f"Untouched backbone: a logistic regression on its frozen features of {len(train):,} training rows.")
        return {
            "majority class": self._majority(evidence.splits.train["label"], rows["labels"]),
            "untouched backbone": self.score(predicted, rows["labels"]),
        }

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show each class's precision, recall, F1 and size, and the confusion matrix."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        numbers = list(range(len(self.labels)))
        true, predicted = np.asarray(seen.encoded["labels"]), _predicted(seen.outputs)
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

    def _majority(self, train: Sequence[str], true: Sequence[int]) -> dict[str, float]:
        most = Counter(train).most_common(1)[0][0]
        return self.score([self.labels.index(most)] * len(true), true)

    def _need_labels(self) -> None:
        if not self.labels:
            raise AdapterLabError("the class names aren't known yet: call task.fit(splits), or give data.labels")


def _probe(train_features: Any, train_labels: Any, features: Any) -> Any:
    """Return what a logistic regression, fitted on train's features, predicts."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as a yardstick it need not be converged
        probe.fit(train_features, train_labels)
    return probe.predict(features)


def _predicted(logits: Any) -> np.ndarray[Any, Any]:
    values = np.asarray(logits)
    if np.isnan(values).any():
        raise AdapterLabError(
            "the model gives NaN: training has diverged. Lower optim.lr, or set optim.precision=fp32."
        )
    return values.argmax(axis=-1)


def _by_number(label: str) -> tuple[int, float, str]:
    """Sort '2' before '10', and numbers before names."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:_SHOWN])
    return f"{shown} and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else shown
