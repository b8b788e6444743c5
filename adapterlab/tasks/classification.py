"""Text classification: one text, one class out of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.data.preparing import encode_rows
from adapterlab.data.tokenizing import identity, settle, tokenise
from adapterlab.errors import AdapterLabError, DataError, did_you_mean
from adapterlab.tasks.base import Task, register_task

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_MANY = 20  # from so many classes on, a class for every other row is no class
_SHOWN = 6  # so many class names at most in a message


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
        self.splits = splits
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
        rows = [row for row, label in enumerate(dataset["label"]) if label not in known]
        strangers = Counter(dataset["label"][row] for row in rows)
        if not strangers:
            return
        fix = "Add them to data.labels" if source == "data.labels" else "Mend the labels"
        raise DataError(
            f"{name} holds labels that {source} doesn't have: {_some(list(strangers))} "
            f"({len(rows):,} of {len(dataset):,} rows: {self.locator(name)(rows)})."
            f"{did_you_mean(next(iter(strangers)), known)} {source} has: {_some(self.labels)}. "
            f"{fix}, or leave those rows out."
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
        """Tokenise; a note says how many texts were cut."""
        self._need_labels()
        limit = min(max_length, tokenizer.model_max_length)
        if limit < max_length:
            self.note(f"data.max_length={max_length} is more than the tokenizer's {limit} tokens; {limit} it is.")
        numbers = {label: number for number, label in enumerate(self.labels)}
        settings = self.preparation

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            columns = tokenise(tokenizer, batch["text"], max_length=limit)
            if "label" in batch:
                columns["labels"] = [numbers[label] for label in batch["label"]]
            return columns

        encoded = encode_rows(
            dataset,
            encode,
            description=f"Tokenising {name}",
            fingerprint=[self.state(), identity(tokenizer), limit],
            workers=settings.workers,
            cache=settings.cache,
        )
        encoded, self.cut[name], note = settle(
            encoded, name=name, max_length=limit, long_texts=settings.long_texts, locate=self.locator(name)
        )
        if note:
            self.note(note)
        return encoded

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad to the longest text of the batch."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def compute_metrics(self, logits: Any, labels: Any) -> dict[str, float]:
        """Compute the task's metrics; a model that gives NaN is told apart from a bad one.

        Raises:
            AdapterLabError: the logits hold NaN.
        """
        return self.score(_predicted(logits), np.asarray(labels))

    def decode(self, logits: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        """Return label, score and the probability of every class, one dict a row."""
        self._need_labels()
        values = np.asarray(logits, dtype=np.float64)
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        probabilities = powers / powers.sum(axis=-1, keepdims=True)
        answers = []
        for row, best in zip(probabilities, _predicted(values), strict=True):
            named = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append({"label": self.labels[best], "score": float(row[best]), "probabilities": named})
        return answers

    def majority_baseline(self, splits: Splits) -> dict[str, float]:
        """Give train's most frequent class to every row of test (or eval)."""
        self._need_labels()
        most = Counter(splits.train["label"]).most_common(1)[0][0]
        rows = splits.eval if splits.test is None else splits.test
        true = [self.labels.index(label) for label in rows["label"]]
        return self.score([self.labels.index(most)] * len(true), true)

    def probe_baseline(
        self, train_features: Any, train_labels: Any, test_features: Any, test_labels: Any
    ) -> dict[str, float]:
        """Fit a logistic regression on the frozen backbone's features; labels are class numbers."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as a yardstick it need not be converged
            probe.fit(np.asarray(train_features, dtype=np.float32), np.asarray(train_labels))
        predicted = probe.predict(np.asarray(test_features, dtype=np.float32))
        return self.score(predicted, np.asarray(test_labels))

    def details(self, logits: Any, labels: Any) -> dict[str, Any]:
        """Return the confusion matrix (rows: true classes) and each class's precision, recall, F1 and size."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        self._need_labels()
        numbers = list(range(len(self.labels)))
        true, predicted = np.asarray(labels), _predicted(logits)
        scores = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0)
        return {
            "labels": list(self.labels),
            "confusion": confusion_matrix(true, predicted, labels=numbers).tolist(),
            "per_class": [
                {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for name, p, r, f, n in zip(self.labels, *scores, strict=True)
            ],
        }

    def _need_labels(self) -> None:
        if not self.labels:
            raise AdapterLabError("the class names aren't known yet: call task.fit(splits), or give data.labels")


def _predicted(logits: Any) -> np.ndarray[Any, Any]:
    # Some models return more than logits (GPT-2's cache); the logits come first.
    values = np.asarray(logits[0] if isinstance(logits, tuple | list) and np.ndim(logits[0]) == 2 else logits)
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
