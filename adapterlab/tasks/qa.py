"""Extractive question answering: the answer is a span of the context, or there is none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from adapterlab.errors import DataError
from adapterlab.tasks.answers import Found, add_window, misplaced, read_answers
from adapterlab.tasks.base import Task, register_task
from adapterlab.tasks.encoding import encode_for
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.metrics_qa import normalise
from adapterlab.tasks.qa_windows import QAWindows
from adapterlab.tasks.sentence import as_text, finite
from adapterlab.tasks.settings import TaskOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits


class QAOptions(TaskOptions):
    """Options of question answering."""

    stride: int = Field(64, ge=0, description="tokens that two windows of a long context share")
    unanswerable: bool | None = Field(
        None, description="whether a question may have no answer in its context. Default: if train has such questions"
    )
    null_threshold: float = Field(
        0.0, description="how much the score of 'no answer' must exceed the best span's; higher answers more often"
    )
    max_answer_length: int = Field(30, ge=1, description="tokens of an answer at most")
    n_best: int = Field(20, ge=1, description="spans that share an answer's probability")


@register_task("qa", "question_answering")
class QuestionAnswering(Task):
    """Learns where in a context the answer to a question stands, and whether it does."""

    summary = "the span of a context that answers a question"
    columns: ClassVar[dict[str, str]] = {
        "question": "the question",
        "context": "the text that holds the answer",
        "answers": "the true answers and where in the context they start; empty if there is none",
    }
    inputs = ("question", "context")
    auto_class = "AutoModelForQuestionAnswering"
    default_metrics = ("exact_match", "answer_f1")
    windows = True  # whatever data.long_texts says: what is cut off may hold the answer
    answering = ("null_threshold", "max_answer_length", "n_best")
    Options = QAOptions

    def clean(self, column: str, value: Any) -> Any:
        """Questions and contexts are texts, contexts kept as they are; answers become a list of {text, start}."""
        if column == "answers":
            return read_answers(value)
        text = as_text(value, column, self.type)
        return text.strip() if text is not None and column == "question" else text

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Refuse an empty question or context, and answers that the context doesn't have where they say."""
        for column in self.inputs:
            if not row[column].strip():
                return f"the {column} is empty"
        return next(filter(None, (misplaced(answer, row["context"]) for answer in row.get("answers") or ())), None)

    def fit(self, splits: Splits) -> None:
        """See whether questions without an answer are among the rows."""
        self.splits = splits
        empty = sum(not answers for answers in splits.train["answers"])
        rows = len(splits.train)
        if empty == rows:
            raise DataError(f"none of train's {rows:,} questions has an answer: there is nothing to learn.")
        if self.options.unanswerable is None:
            self.options = self.options.model_copy(update={"unanswerable": empty > 0})
        for name, split in splits.named.items():
            self.check_labels(split, name)
        if self.options.unanswerable:
            none = "" if empty else "; the model can't learn what nobody shows it"
            self.note(f"{empty:,} of train's {rows:,} questions ({empty / rows:.0%}) have no answer{none}.")

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse questions without an answer where the model always gives one."""
        empty = [row for row, answers in enumerate(dataset["answers"]) if not answers]
        if empty and not self.options.unanswerable:
            raise DataError(
                f"{len(empty):,} of {len(dataset):,} questions of {name} have no answer "
                f"({self.locator(name)(empty)}), and this task answers every question "
                "(task.unanswerable is false, or train has no such question). Leave them out, or train with "
                "task.unanswerable=true on rows that hold some."
            )

    def model_kwargs(self) -> dict[str, Any]:
        """A start and an end, whatever the backbone was trained for before."""
        return {"num_labels": 2}

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise questions whole, with as much of the context as fits: in overlapping windows if that isn't all."""
        windows = QAWindows(tokenizer, min(max_length, tokenizer.model_max_length), self.options.stride)
        self._refuse_long_questions(dataset, windows, name)
        encoded = encode_for(self, dataset, windows.encode, tokenizer, name, windows.limit)
        if long := [row for row, count in Counter(encoded["_row"]).items() if count > 1]:
            if self.preparation.long_texts == "refuse":
                raise DataError(
                    f"{name}: {len(long):,} of {len(dataset):,} contexts don't fit into {windows.limit} tokens with "
                    f"their question ({self.locator(name)(long)}). Raise data.max_length, or leave data.long_texts "
                    "out: they are read in windows then."
                )
            self.note(
                f"{name}: {len(long):,} of {len(dataset):,} contexts don't fit into {windows.limit} tokens "
                f"with their question (data.max_length): read in {len(encoded):,} windows, which share "
                f"{self.options.stride} tokens."
            )
        return encoded

    def _refuse_long_questions(self, dataset: Dataset, windows: QAWindows, name: str) -> None:
        if long := windows.without_room(dataset["question"]):
            question = dataset[long[0]]["question"]
            raise DataError(
                f"{name}: {len(long):,} of {len(dataset):,} questions leave less than {self.options.stride + 1} of "
                f"{windows.limit} tokens for the context, and windows share {self.options.stride} "
                f"({self.locator(name)(long)}; '{question[:60]}'). Raise data.max_length, lower task.stride, or "
                "shorten them."
            )

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep the logits of starts and ends."""
        return outputs.start_logits, outputs.end_logits

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the metrics; where there may be no answer, also of the questions with and without one."""
        given = [answer["answer"] for answer in self.decode(seen)]
        return self._scores(given, _texts(seen.rows))

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the answer, where in the context it starts and ends, and its probability among the best spans."""
        answers = []
        for found, context in zip(self._found(seen), seen.rows["context"], strict=True):
            spans = [
                span for span in found.best(self.options.n_best) if context[span[1] : span[2]].strip()
            ]  # by SentencePiece a token may be only white space
            nothing = not spans or (
                bool(self.options.unanswerable) and found.null - spans[0][0] > self.options.null_threshold
            )
            scores = np.array([span[0] for span in spans] + [found.null] * bool(self.options.unanswerable))
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum() if len(scores) else [0.0]
            if nothing:
                answers.append({"answer": "", "start": None, "end": None, "score": float(shares[-1])})
                continue
            _, start, end = spans[0]
            text = context[start:end]
            start += len(text) - len(text.lstrip())  # byte-level tokens begin with the space before a word
            answer = text.strip()
            answers.append({"answer": answer, "start": start, "end": start + len(answer), "score": float(shares[0])})
        return answers

    def flat(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Leave the context out of tables."""
        return super().flat({key: value for key, value in answer.items() if key != "context"})

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with the sentence that shares most words with the question, no answer, and the model as it came."""
        rows = evidence.splits.named[evidence.split]
        true = _texts(rows)
        found = {"nearest sentence": self._scores([_sentence(row) for row in rows], true)}
        if self.options.unanswerable:
            found = {"no answer": self._scores([""] * len(true), true)} | found
        self.note("Untouched backbone: with the head that it came with; if it came without one, a random one.")
        return {**found, "untouched backbone": self.measure(evidence.untouched())}

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show questions with and without an answer apart."""
        if not self.options.unanswerable:
            return []
        measured, true = self.measure(seen), _texts(seen.rows)
        body = [
            [
                title,
                *(f"{measured[key + name]:.3f}" if key + name in measured else "-" for name in self.metrics),
                f"{n:,}",
            ]
            for title, key, n in (
                ("with an answer", "has_answer_", sum(map(bool, true))),
                ("without", "no_answer_", sum(not texts for texts in true)),
                ("all", "", len(true)),
            )
        ]
        return [ReportTable("With and without an answer", ["questions", *self.metrics, "rows"], body)]

    def _scores(self, given: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = self.score(given, true)
        for key, wanted in (("has_answer_", True), ("no_answer_", False)) if self.options.unanswerable else ():
            rows = [row for row, texts in enumerate(true) if bool(texts) is wanted]
            if rows:
                part = self.score([given[row] for row in rows], [true[row] for row in rows])
                scores |= {key + name: value for name, value in part.items()}
        return scores

    def _found(self, seen: Predictions) -> list[Found]:
        starts, ends = map(finite, seen.outputs)
        found = [Found({}) for _ in range(len(seen.rows))]
        windows = seen.encoded.select_columns(["_row", "_begins", "_ends", "_null"])
        for window, start, end in zip(windows, starts, ends, strict=True):
            add_window(
                found[window["_row"]], start, end, window["_begins"], window["_ends"], window["_null"],
                longest=self.options.max_answer_length, count=self.options.n_best,
            )  # fmt: skip
        return found


def _texts(rows: Dataset) -> list[list[str]]:
    return [[answer["text"] for answer in answers] for answers in rows["answers"]]


def _sentence(row: Mapping[str, Any]) -> str:
    wanted = set(normalise(row["question"]).split())
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", row["context"]) if part.strip()]
    return str(max(sentences, key=lambda part: (len(wanted & set(normalise(part).split())), -len(part))))
