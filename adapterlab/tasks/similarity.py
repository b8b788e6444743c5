"""Sentence similarity and retrieval: texts become vectors, whose cosine says how near two texts are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from adapterlab.data.tokenizing import tokenise
from adapterlab.errors import BackboneError, ConfigError, DataError
from adapterlab.tasks import metrics_ranks as _ranks  # noqa: F401 (registers them)
from adapterlab.tasks.base import Task, register_task
from adapterlab.tasks.embedding import contrastive, partner_ranks, pool
from adapterlab.tasks.exchange import Evidence, Predictions
from adapterlab.tasks.sentence import as_text, encode_texts, finite
from adapterlab.tasks.settings import TaskOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_SCORED = ("spearman", "pearson")
_PAIRED = ("recall@1", "recall@5", "recall@10", "mrr")
_TEXTS = ("text", "text_pair", "negative")


class SimilarityOptions(TaskOptions):
    """Options of similarity."""

    pooling: Literal["mean", "cls"] = Field(
        "mean", description="how tokens become a vector: their mean, or the first one"
    )
    temperature: float = Field(
        0.05, gt=0, description="of pairs without scores: cosines are divided by it, so the lower the harder"
    )
    lowest_cosine: Literal[0, -1] = Field(
        0, description="of scored pairs: the cosine that the lowest score stands for; the highest stands for 1"
    )


@register_task("similarity")
class Similarity(Task):
    """Learns vectors for texts, from pairs with a score or from pairs that belong together.

    Where rows have a `score`, cosines of pairs are fitted to it. Where they have none, each text learns to find its
    partner among all partners (and `negative`s) of its batch, InfoNCE, van den Oord et al. 2018, arXiv:1807.03748: a
    larger batch is a harder lesson. The batch is one process's: neither accumulation nor further processes widen it.
    """

    summary = "vectors of texts, near where texts are alike or belong together"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text, or the query",
        "text_pair": "the text it is compared with, or that belongs to it",
        "negative": "a text that doesn't belong to it, though it may look so",
        "score": "how alike the two are, a number; leave it out where pairs belong together",
    }
    optional = ("text_pair", "negative", "score")
    inputs = ("text", "text_pair")
    extra_inputs = ("kinds", "length", "labels")
    auto_class = "AutoModel"
    default_metrics = (*_SCORED, *_PAIRED)
    Options = SimilarityOptions

    def clean(self, column: str, value: Any) -> Any:
        """Texts are strings, scores numbers."""
        text = as_text(value, column, self.type)
        if column != "score" or text is None:
            return text
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"holds {value!r}, and a score is a number") from None
        if not np.isfinite(number):
            raise ValueError(f"holds {value!r}, and a score is a finite number")
        return number

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Refuse a partner or a score in some rows only."""
        for column in ("text_pair", "score"):
            if column in row and row[column] is None:
                return f"the {column} is empty, though others have one"
        return None

    def fit(self, splits: Splits) -> None:
        """See whether rows are scored; the metrics are those that suit."""
        self.splits, train = splits, splits.train
        self.learned["scored"] = scored = "score" in train.column_names
        for name, rows in splits.named.items():
            self.check_labels(rows, name)
        suited = _SCORED if scored else _PAIRED
        if self.metrics != list(self.default_metrics) and (odd := [m for m in self.metrics if m not in suited]):
            what = "have a score" if scored else "have no score"
            raise ConfigError(
                f"task.metrics: {', '.join(odd)}: rows {what}, so these can be measured: {', '.join(suited)}."
            )
        self.metrics = [metric for metric in self.metrics if metric in suited]
        if not scored:
            hard = sum(text is not None for text in train["negative"]) if "negative" in train.column_names else 0
            self.note(f"{len(train):,} pairs that belong together; {hard:,} rows have a negative.")
            return
        low, high = min(train["score"]), max(train["score"])
        if low == high:
            raise DataError(f"all {len(train):,} scores of train are {low:g}: there is nothing to learn from them.")
        self.learned["range"] = [low, high]
        self.note(f"Scores from {low:g} to {high:g} stand for cosines from {self.options.lowest_cosine} to 1.")

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse rows without a partner, or of the other kind."""
        if "text_pair" not in dataset.column_names:
            raise DataError(
                f"{name} has no text_pair: similarity learns from pairs. Say which column it is: "
                "data.columns.text_pair=COLUMN"
            )
        if ("score" in dataset.column_names) != self.learned["scored"]:
            raise DataError(
                f"{name} has {'no' if self.learned['scored'] else 'a'} score, and train has "
                f"{'one' if self.learned['scored'] else 'none'}: all files must be of one kind."
            )

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise each text by itself: a list of those there are a row, and what each is."""
        limit = min(max_length, tokenizer.model_max_length)

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            there = [[n for n, column in enumerate(_TEXTS) if column in batch and batch[column][row] is not None]
                     for row in range(len(batch["text"]))]  # fmt: skip
            texts = [batch[_TEXTS[n]][row] for row, kinds in enumerate(there) for n in kinds]
            tokens = tokenise(tokenizer, texts, max_length=limit)
            ids = iter(tokens["input_ids"])
            columns: dict[str, Any] = {"input_ids": [[next(ids) for _ in kinds] for kinds in there], "kinds": there}
            columns["length"] = [max(map(len, row)) for row in columns["input_ids"]]
            ends = np.cumsum([len(kinds) for kinds in there])
            columns["cut"] = [
                any(tokens["cut"][end - len(kinds) : end]) for end, kinds in zip(ends, there, strict=True)
            ]
            if "score" in batch:
                columns["labels"] = [self._cosine(score) for score in batch["score"]]
            return columns

        return encode_texts(self, dataset, encode, tokenizer, limit, name, "rows")

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Lay the texts of all rows one below the other, for one forward pass, and number those that are equal."""
        import torch
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(tokenizer)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            texts = [ids for row in rows for ids in row["input_ids"]]
            numbers: dict[tuple[int, ...], int] = {}
            batch: dict[str, Any] = {
                "rows": torch.tensor([place for place, row in enumerate(rows) for _ in row["kinds"]]),
                "kinds": torch.tensor([kind for row in rows for kind in row["kinds"]]),
                "same": torch.tensor([numbers.setdefault(tuple(ids), len(numbers)) for ids in texts]),
            }
            if all(row.get("labels") is not None for row in rows):
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch | dict(pad([{"input_ids": ids} for ids in texts]))

        return collate

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss of a batch of pairs, and the vectors, (rows, kinds of text, hidden); there are no others."""
        import torch

        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise BackboneError(
                f"similarity takes vectors from an encoder or a decoder, and {type(model).__name__} is both at once. "
                "Take a backbone like BERT, RoBERTa or a GPT."
            )
        mask, rows, kinds = batch["attention_mask"], batch["rows"], batch["kinds"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 can't tell cosines near 1 apart
            vectors = pool(hidden, mask, self.options.pooling)
            table = vectors.new_zeros(int(rows.max()) + 1, int(kinds.max()) + 1, vectors.shape[-1])
            table[rows, kinds] = vectors
            if "labels" in batch:
                cosines = (table[:, 0] * table[:, 1]).sum(-1)
                return torch.nn.functional.mse_loss(cosines, batch["labels"].float()), table
            if not (kinds == 1).any():
                return None, table  # single texts, to be predicted on
            return contrastive(vectors, rows, kinds, batch["same"], self.options.temperature), table

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep the vectors."""
        return outputs

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute how cosines go along with scores, or at which rank partners are found among all of the split's."""
        vectors, rows = finite(seen.outputs), seen.rows
        if self.learned["scored"]:
            return self.score(_cosines(vectors), rows["score"])
        negatives = rows["negative"] if "negative" in rows.column_names else ()
        ranks = partner_ranks(rows["text"], rows["text_pair"], vectors, negatives)
        return self.score(ranks, [1] * len(ranks))

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the cosine of a pair, and the score it stands for if scores were learned; of one text its vector."""
        vectors = finite(seen.outputs)
        pairs = seen.rows["text_pair"] if "text_pair" in seen.rows.column_names else [None] * len(vectors)
        answers: list[dict[str, Any]] = []
        for vector, pair in zip(vectors, pairs, strict=True):
            if pair is None:
                answers.append({"embedding": [round(float(number), 6) for number in vector[0]]})
                continue
            cosine = float(vector[0] @ vector[1])
            answers.append({"cosine": cosine} | ({"score": self._score(cosine)} if self.learned["scored"] else {}))
        return answers

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with the cosines of the backbone as it came."""
        return {"untouched backbone": self.measure(evidence.untouched())}

    def _cosine(self, score: float) -> float:
        low, high = self.learned["range"]
        return self.options.lowest_cosine + (1 - self.options.lowest_cosine) * (score - low) / (high - low)

    def _score(self, cosine: float) -> float:
        low, high = self.learned["range"]
        share = (cosine - self.options.lowest_cosine) / (1 - self.options.lowest_cosine)
        return float(low + (high - low) * min(max(share, 0.0), 1.0))


def _cosines(vectors: Any) -> list[float]:
    return [float(one @ other) for one, other in zip(vectors[:, 0], vectors[:, 1], strict=True)]
