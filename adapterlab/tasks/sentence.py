"""What tasks on whole texts, or pairs of texts, share: their columns, their encoding, their yardstick."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.data.tokenizing import settle, tokenise
from adapterlab.errors import AdapterLabError, DataError
from adapterlab.tasks.base import Task
from adapterlab.tasks.encoding import encode_for
from adapterlab.tasks.exchange import Evidence

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

PROBE_ROWS = 2000  # training rows that a probe of the untouched backbone sees, at most


class SentenceTask(Task):
    """Learns something of a text, or of two texts together, that the model's head gives as one row of numbers."""

    columns: ClassVar[dict[str, str]] = {"text": "the text", "text_pair": "the second text", "label": "its label"}
    inputs = ("text", "text_pair")
    optional = ("text_pair",)
    auto_class = "AutoModelForSequenceClassification"

    @abstractmethod
    def clean_label(self, value: Any) -> Any:
        """Return a label as the task uses it, as `clean` does."""

    @abstractmethod
    def targets(self, labels: Sequence[Any]) -> list[Any]:
        """Return what the loss compares the model's outputs with."""

    @abstractmethod
    def loss(self, logits: Any, targets: Any) -> Any:
        """Return the loss of a batch's logits, in fp32."""

    def clean(self, column: str, value: Any) -> Any:
        """Texts are strings; blank ones, None and NaN are missing."""
        if column == "label":
            return self.clean_label(value)
        return as_text(value, column, self.type)

    def check(self, row: Mapping[str, Any]) -> str | None:
        """A row has a second text where, and only where, the task is on pairs."""
        pairs = self.learned.get("pairs")
        if "text_pair" in row and row["text_pair"] is None:
            return "text_pair is empty"
        if pairs is True and "text_pair" not in row:
            return "text_pair is missing, and the adapter was trained on pairs of texts"
        if pairs is False and "text_pair" in row:
            return "there is a text_pair, and the adapter was trained on single texts"
        return None

    def fit(self, splits: Splits) -> None:
        """Learn whether rows are pairs."""
        self.splits = splits
        self.learned["pairs"] = pairs = "text_pair" in splits.train.column_names
        for name, rows in splits.named.items():
            if ("text_pair" in rows.column_names) != pairs:
                has, lacks = ("train", name) if pairs else (name, "train")
                raise DataError(
                    f"{has} has a text_pair and {lacks} has none: a task is on pairs of texts or on single texts. "
                    "Name the columns alike in all files, or see data.columns."
                )

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise; of a pair too long the longer text is cut first. A note says how many were cut."""
        self.need_fit()
        limit = min(max_length, tokenizer.model_max_length)
        if limit < max_length:
            self.note(f"data.max_length={max_length} is more than the backbone's {limit} tokens; {limit} it is.")

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            return tokenise(tokenizer, batch["text"], batch.get("text_pair"), max_length=limit)

        what = "pairs" if "text_pair" in dataset.column_names else "texts"
        encoded = encode_texts(self, dataset, encode, tokenizer, limit, name, what)
        if "label" in dataset.column_names:
            encoded = encoded.add_column("labels", self.targets(dataset["label"]))
        return encoded

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Run the model on a batch; the loss is the task's own, so that it is the same whatever the model's class."""
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        loss = self.loss(outputs.logits.float(), batch["labels"]) if "labels" in batch else None
        return loss, outputs

    def need_fit(self) -> None:
        """Raise an error unless `fit` has been called, or the task comes from an adapter."""
        if not self.labels:
            raise AdapterLabError("the class names aren't known yet: call task.fit(splits), or give data.labels")


def as_text(value: Any, column: str, task: str) -> str | None:
    """Return a value as text; blank ones, None and NaN are missing.

    Raises:
        ValueError: it is a list or a mapping.
    """
    if isinstance(value, list | dict):
        raise ValueError(f"holds a {type(value).__name__} where {task} needs one {column} per row")
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 is what is left of the class 1 in a column with gaps
    text = str(value)
    return text if text.strip() else None


def encode_texts(
    task: Task,
    dataset: Dataset,
    encode: Callable[[dict[str, list[Any]]], dict[str, Any]],
    tokenizer: Any,
    limit: int,
    name: str,
    what: str = "texts",
) -> Dataset:
    """Encode rows as the task's preparation says, and note how many were cut.

    Args:
        encode: makes columns of a batch's, one of them `cut`: whether a row lost tokens. It depends on nothing but the
            batch, the task's state, tokenizer and limit.
        what: what a row holds, for the note.
    """
    encoded = encode_for(task, dataset, encode, tokenizer, name, limit, with_indices=False)
    encoded, task.cut[name], note = settle(
        encoded,
        name=name,
        max_length=limit,
        long_texts=task.preparation.long_texts,
        locate=task.locator(name),
        what=what,
    )
    if note:
        task.note(note)
    return encoded


def finite(logits: Any) -> np.ndarray[Any, Any]:
    """Return logits in double precision.

    Raises:
        AdapterLabError: they hold NaN: a model that diverged is told apart from a bad one.
    """
    values = np.asarray(logits, dtype=np.float64)
    if np.isnan(values).any():
        raise AdapterLabError(
            "the model gives NaN: training has diverged. Lower optim.lr, or set optim.precision=fp32."
        )
    return values


def fit_probe(task: Task, evidence: Evidence, estimator: Any, what: str) -> Any:
    """Return the estimator, fitted on the untouched backbone's features of training rows, scaled; and note it."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = evidence.encoded("train", PROBE_ROWS)
    probe = make_pipeline(StandardScaler(), estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as a yardstick it need not be converged
        warnings.filterwarnings("ignore", message="Label .* is present in all")  # then that is what it says
        probe.fit(evidence.features(train), np.asarray(train["labels"]))
    task.note(f"Untouched backbone: {what} on its frozen features of {len(train):,} training rows.")
    return probe
