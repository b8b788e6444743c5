"""Multiple choice: a question, several choices, one of them right. How many there are may differ from row to row."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapterlab.data.tokenizing import tokenise
from adapterlab.errors import DataError
from adapterlab.tasks.base import Task, register_task
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.sentence import as_text, encode_texts, finite

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_LETTERS = string.ascii_uppercase


@register_task("multiple_choice")
class MultipleChoice(Task):
    """Learns to score a question with each of its choices; the answer is the choice with the highest score."""

    summary = "one of several choices for a question"
    columns: ClassVar[dict[str, str]] = {
        "question": "the question, or the text that a choice goes on from",
        "context": "a passage that the question is about",
        "choices": "a list of texts, or several columns with a text each",
        "answer": "the right one: its index from 0, its letter or name, or its text",
    }
    optional = ("context",)
    inputs = ("context", "question", "choices")
    extra_inputs = ("length",)
    auto_class = "AutoModelForMultipleChoice"
    default_metrics = ("accuracy",)

    def clean(self, column: str, value: Any) -> Any:
        """Choices become a list of {name, text}; an answer stays an index, or a text to look up in them."""
        if column == "choices":
            return _read_choices(value)
        if column == "answer" and isinstance(value, bool):
            raise ValueError(f"holds {value!r}, which is neither an index nor a letter or text")
        text = as_text(value, column, self.type)
        return text.strip() if text is not None and column == "answer" else text

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Refuse choices of which there are fewer than two, and an answer that is none of them."""
        if len(row["choices"]) < 2:
            return f"there are {len(row['choices'])} choices, and two are the least"
        if row.get("answer") is not None and _index(row["answer"], row["choices"]) is None:
            names = [choice["name"] for choice in row["choices"]]
            return (
                f"the answer '{row['answer']}' is none of the choices: give an index from 0 to {len(names) - 1}, "
                f"a name ({', '.join(names)}) or the text of exactly one"
            )
        return None

    def fit(self, splits: Splits) -> None:
        """Say how many choices there are, and where the right ones stand."""
        self.splits = splits
        counts = Counter(len(choices) for choices in splits.train["choices"])
        places = Counter(_indices(splits.train))
        rows = len(splits.train)
        if len(places) == 1 and rows > 20:
            raise DataError(
                f"in all {rows:,} rows of train the right choice is number {next(iter(places)) + 1}: a model learns "
                "that place and not the question. Shuffle the choices. Is data.columns.answer the right column?"
            )
        sizes = ", ".join(f"{size} ({n:,} rows)" for size, n in sorted(counts.items())) if len(counts) > 1 else ""
        self.note(f"Choices a row: {sizes or next(iter(counts))}.")

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise question and choice as a pair, a list of them a row; of a pair too long the longer is cut first."""
        limit = min(max_length, tokenizer.model_max_length)

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sizes = [len(choices) for choices in batch["choices"]]
            contexts = batch.get("context") or [None] * len(sizes)
            first, second = [], []
            for context, question, choices in zip(contexts, batch["question"], batch["choices"], strict=True):
                for choice in choices:  # a passage is the longer part, and so the one that is cut
                    first.append(question if context is None else context)
                    second.append(choice["text"] if context is None else f"{question} {choice['text']}")
            pairs = tokenise(tokenizer, first, second, max_length=limit)
            ends = np.cumsum(sizes)
            columns: dict[str, Any] = {
                key: [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
                for key, values in pairs.items()
            }
            lengths = [max(map(len, ids)) for ids in columns["input_ids"]]
            columns["cut"] = [any(cut) for cut in columns["cut"]]
            columns["length"] = [length * size for length, size in zip(lengths, sizes, strict=True)]
            if "answer" in batch:
                pairs_of = zip(batch["answer"], batch["choices"], strict=True)
                columns["labels"] = [_index(answer, choices) for answer, choices in pairs_of]
            return columns

        return encode_texts(self, dataset, encode, tokenizer, limit, name, "questions with choices")

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Lay the choices of all rows one below the other: no row is filled up to the most choices of the batch."""

        import torch
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(tokenizer)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = {"choices": torch.tensor([len(row["input_ids"]) for row in rows])}
            if all(row.get("labels") is not None for row in rows):
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            keys = [key for key in rows[0] if key not in ("labels", "length")]
            texts = [
                dict(zip(keys, values, strict=True))
                for row in rows
                for values in zip(*(row[key] for key in keys), strict=True)
            ]
            return batch | dict(pad(texts))

        return collate

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Score each choice; the loss is the cross entropy over those that a row has. Outputs: (rows, most choices)."""
        import torch

        given = {key: value for key, value in batch.items() if key not in ("choices", "labels")}
        flat = model(**{key: value.unsqueeze(1) for key, value in given.items()}).logits.float().squeeze(-1)
        sizes = batch["choices"]
        there = torch.arange(int(sizes.max()), device=flat.device) < sizes.unsqueeze(1)
        scores = flat.new_full(there.shape, torch.finfo(flat.dtype).min).masked_scatter(there, flat)
        labels = batch.get("labels")
        return None if labels is None else torch.nn.functional.cross_entropy(scores, labels), scores

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep the scores."""
        return outputs

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the metrics of the indices."""
        return self.score([int(row.argmax()) for row in _scores(seen)], _indices(seen.rows))

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the choice, its index and name, its probability, and the probability of each by its name."""
        answers = []
        for scores, choices in zip(_scores(seen), seen.rows["choices"], strict=True):
            powers = np.exp(scores - scores.max())
            shares = powers / powers.sum()
            best = int(shares.argmax())
            names = [choice["name"] for choice in choices]
            answers.append(
                {
                    "choices": [choice["text"] for choice in choices],
                    "choice": choices[best]["text"],
                    "index": best,
                    "name": names[best],
                    "score": float(shares[best]),
                    "probabilities": dict(zip(names, map(float, shares), strict=True)),
                }
            )
        return answers

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with chance, exactly: one in the number of choices."""
        chance = float(np.mean([1 / len(choices) for choices in evidence.splits.named[evidence.split]["choices"]]))
        return {"chance": {"accuracy": chance}}

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show where right choices stand and which places are chosen: a model that prefers a place shows here."""
        true, given = Counter(_indices(seen.rows)), Counter(int(row.argmax()) for row in _scores(seen))
        body = [[_name(place), f"{true[place]:,}", f"{given[place]:,}"] for place in sorted(true | given)]
        return [ReportTable("Places", ["choice", "right", "chosen"], body)]


def _read_choices(value: Any) -> list[dict[str, str]] | None:
    """Return choices as a list of {name, text}: from texts, ARC's {text: [...], label: [...]}, columns, or JSON."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f'holds {value[:40]!r}, which is no list; in a csv write JSON: ["one", "two"]') from None
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    names: list[Any] | None = None
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value, names = value["text"], value.get("label")
    elif isinstance(value, dict):  # of several columns; a row with fewer choices leaves the last ones empty
        value = [text for text in value.values() if text is not None and str(text).strip()]
    if not isinstance(value, list):
        raise ValueError(f"holds a {type(value).__name__}, where choices are a list of texts")
    texts = [one.get("text") if isinstance(one, dict) else one for one in value]
    if any(isinstance(one, dict) for one in value):
        names = [one.get("label") if isinstance(one, dict) else None for one in value]
    if names is not None and (len(names) != len(texts) or len(set(map(str, names))) < len(names)):
        raise ValueError(f"has {len(texts)} choices and labels {names}: each needs one of its own")
    if blank := [place for place, text in enumerate(texts) if text is None or not str(text).strip()]:
        raise ValueError(f"has an empty choice, number {blank[0] + 1} of {len(texts)}")
    return [
        {"name": _name(place) if names is None else str(names[place]), "text": str(text)}
        for place, text in enumerate(texts)
    ]


def _name(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else str(place + 1)


def _index(answer: str, choices: list[dict[str, str]]) -> int | None:
    """Return the index of the choice that is meant: by its name, its text if only one has it, or its index from 0."""
    for key, meant in (("name", answer), ("text", answer), ("name", answer.upper())):
        found = [place for place, choice in enumerate(choices) if choice[key].strip() == meant]
        if len(found) == 1:
            return found[0]
    return int(answer) if answer.isdecimal() and int(answer) < len(choices) else None


def _indices(rows: Dataset) -> list[int]:
    found = (_index(answer, choices) for answer, choices in zip(rows["answer"], rows["choices"], strict=True))
    return [place for place in found if place is not None]


def _scores(seen: Predictions) -> list[np.ndarray[Any, Any]]:
    sizes = [len(choices) for choices in seen.rows["choices"]]
    return [row[:size] for row, size in zip(finite(seen.outputs), sizes, strict=True)]
