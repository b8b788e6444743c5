"""What a task is: its columns, its model class, how rows become batches and a model's outputs become answers."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import ValidationError

from adapterlab.data.formats.parsed import some
from adapterlab.data.preparing import Preparation
from adapterlab.errors import ConfigError, did_you_mean, unknown_name
from adapterlab.registry import Registry
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.metrics import METRICS, compute
from adapterlab.tasks.settings import DataSettings, TaskOptions, TaskSettings

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits


OptionsClass = type[TaskOptions]  # inside Task, `type` is the task's own


class Task(ABC):
    """A kind of task. An instance is one recipe's: `fit` learns its labels, `notes` collects for the report.

    Args:
        metrics: names in `METRICS`; None takes the task's default.
        column_names: the task's column → the file's (or several of them), where the names differ.
        labels: the class names in the order wanted; None sorts those found.
        options: the task's own options.

    Raises:
        ConfigError: with all that is wrong.
    """

    type: ClassVar[str] = ""  # set by the registry
    summary: ClassVar[str]
    columns: ClassVar[dict[str, str]]  # the task's column names, each with a description
    optional: ClassVar[tuple[str, ...]] = ()  # those that a file may lack
    synonyms: ClassVar[dict[str, tuple[str, ...]]] = {}  # what files call them as well
    inputs: ClassVar[tuple[str, ...]]  # those that the model sees
    strata: ClassVar[str | None] = None  # the one whose proportions splits keep; of lists, each item's
    auto_class: str  # in transformers
    extra_inputs: ClassVar[tuple[str, ...]] = ()  # columns of a batch that `forward` reads and the model doesn't take
    plain_input: ClassVar[str | None] = None  # what a plain text given to `predict` is; None: the only input needed
    documents: str | None = None  # how a txt's lines make rows; None takes each for one
    raw_text: ClassVar[bool] = False  # whether it reads corpora: streamed, replayed, told by the token
    counts_items: ClassVar[bool] = False  # whether `forward` divides its loss by the number of items it is given
    redraws: ClassVar[bool] = False  # whether the model reads other tokens of a row each time it trains on it
    ahead: ClassVar[int] = 64  # batches that `predict` reads before it answers: it sorts them by length
    default_metrics: ClassVar[tuple[str, ...]]
    windows: ClassVar[bool] = False  # whether long texts can be read in windows
    deferred: ClassVar[str] = ""  # what to do to have those metrics measured while training that `eval_metrics` lacks
    answering: ClassVar[tuple[str, ...]] = ()  # options that `predict` may set anew: they say how answers are found
    Options: ClassVar[OptionsClass] = TaskOptions

    def __init__(
        self,
        *,
        metrics: Sequence[str] | None = None,
        column_names: Mapping[str, str | list[str]] | None = None,
        labels: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        problems: list[str] = []
        self.metrics = self._check_metrics(self.usual_metrics(options or {}) if metrics is None else metrics, problems)
        self.column_names = dict(column_names or {})
        for name in self.column_names:
            if name not in self.columns:
                known = ", ".join(f"{column} ({text})" for column, text in self.columns.items())
                near = did_you_mean(name, self.columns)
                problems.append(f"data.columns: {self.type} reads no '{name}'.{near} It reads: {known}.")
        self.labels = [] if labels is None else list(labels)
        self._labels_from = "train" if labels is None else "data.labels"
        if twice := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            problems.append(f"data.labels names a label twice: {', '.join(twice)}")
        try:
            self.options: Any = self.Options.model_validate(dict(options or {}))
        except ValidationError as error:
            problems += [self._word(item) for item in error.errors()]
        if problems:
            raise ConfigError(problems)
        self.notes: list[str] = []
        self.learned: dict[str, Any] = {}  # what `fit` and `settle` found, beside the labels; kept with the adapter
        self.preparation = Preparation()
        self.cut: dict[str, int] = {}  # texts of each encoded split that lost tokens
        self.splits: Splits | None = None  # those learned from, whose rows can be located

    @classmethod
    def usual_metrics(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the metrics that are measured if none are named; options, not checked yet, may add to the default."""
        return cls.default_metrics

    @staticmethod
    def from_recipe(task: TaskSettings, data: DataSettings) -> Task:
        """Build the task that a recipe's `task` and `data` sections describe.

        Raises:
            ConfigError: an unknown type, metric, option or input column; all problems at once.
        """
        made = TASKS.get(task.type)(
            metrics=task.metrics,
            column_names=data.columns,
            labels=data.labels,
            options=getattr(task, "model_extra", None),
        )
        if data.long_texts == "window" and not made.windows:
            raise ConfigError(f"data.long_texts: {made.type} can't read texts in windows; set it to cut or refuse")
        made.preparation = Preparation(data.workers, data.cache, data.long_texts, data.stride)
        return made

    def state(self) -> dict[str, Any]:
        """Return what rebuilds the task, labels included, as JSON can hold it."""
        return {
            "type": self.type,
            "metrics": self.metrics,
            "columns": self.column_names,
            "labels": self.labels,
            "options": self.options.model_dump(mode="json"),
            "stride": self.preparation.stride,
            "learned": self.learned,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Task:
        """Rebuild a task from `state()`.

        Raises:
            ConfigError: the state names a task or metric that isn't known here.
        """
        task = TASKS.get(str(state.get("type")))(
            metrics=state.get("metrics"),
            column_names=state.get("columns"),
            labels=state.get("labels") or None,
            options=state.get("options"),
        )
        if task.labels:
            task._labels_from = "the adapter"
        task.learned = dict(state.get("learned") or {})
        task.preparation = replace(task.preparation, stride=int(state.get("stride", task.preparation.stride)))
        return task

    def set_options(self, changes: Mapping[str, Any]) -> None:
        """Set options anew that say how answers are found, before `prepare`; the adapter on disk keeps its own.

        Raises:
            ConfigError: with all that is wrong.
        """
        problems = []
        for name in changes:
            if not self.answering:
                problems.append(
                    f"a {self.type} task has no options that say how answers are found: {name} can't be set."
                )
            elif name not in self.Options.model_fields:
                problems.append(unknown_name(f"{self.type} option", name, self.answering))
            elif name not in self.answering:
                can = ", ".join(self.answering)
                problems.append(f"task.{name} is part of what was learned, so it can't be set now. What can: {can}.")
        if problems:
            raise ConfigError(problems)
        try:
            self.options = self.Options.model_validate({**self.options.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError([self._word(item) for item in error.errors()]) from None

    @abstractmethod
    def clean(self, column: str, value: Any) -> Any:
        """Return a value as the task uses it, or None where it is missing or empty.

        Raises:
            ValueError: it is of the wrong kind; the message goes on after "data.csv, column 'text' as text: ".
        """

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Say what is wrong with a row of clean values, e.g. that a span lies outside its text; None is nothing."""
        return None

    @abstractmethod
    def fit(self, splits: Splits) -> None:
        """Learn the labels and check every split against them.

        Raises:
            DataError: the rows can't be learned from; the message says which and why.
        """

    def check_labels(self, dataset: Dataset, name: str) -> None:  # noqa: B027
        """Check rows, read later, against the labels learned; `name` is for the message.

        Raises:
            DataError: rows have a label that isn't known.
        """

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """Tokens that the tokenizer lacks and the adapter brings along, e.g. markers; their embeddings are trained."""
        return ()

    def new_words(self, train: Any, tokenizer: Any) -> list[str]:
        """Return words of the rows to train on that the adapter shall bring along as tokens of their own."""
        return []

    def begin(self, model: Any) -> None:  # noqa: B027
        """Give the model's fresh head a better start than chance, knowing train; before an adapter is attached."""

    def settle(self, seen: Callable[[], Predictions]) -> None:  # noqa: B027
        """Learn what only the trained model tells (thresholds, say), before it is saved and measured.

        Args:
            seen: gives what the model made of the eval rows; calling it runs the model, on every process.
        """

    def model_kwargs(self) -> dict[str, Any]:
        """Return what `from_pretrained` needs to know of the task."""
        return {}

    def prepare(self, model: Any, tokenizer: Any) -> None:  # noqa: B027
        """Look at the backbone, its adapter on it, before rows are encoded: keep what is needed to know of it.

        Raises:
            BackboneError: the task can't be done with it.
        """

    @abstractmethod
    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Turn rows into token ids (and labels, where there are any).

        `name` is the split's ("train", "eval", "test"), for notes, or "data" for rows that are to be answered.
        Columns whose names begin with "_" are the task's own notes (offsets, `_row`): no batch holds them. Rows are
        batched by their number of tokens: that of `input_ids`, or a column `length` (to be named in `extra_inputs`).
        `encoding.encode_for` does it as `data.workers` and `data.cache` say.
        """

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what makes a batch of encoded rows: padded to the longest of them, unless a task wants otherwise."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Run the model on a batch; return its loss (None without labels) and its outputs.

        Args:
            items: how many items the whole optimizer step has, over all batches and processes, if `counts_items`.
        """
        outputs = model(**batch)
        return getattr(outputs, "loss", None), outputs

    def spread(self, outputs: Any, batch: dict[str, Any], items: Any = None) -> Any:
        """Return the cross-entropy against labels spread evenly over all classes, for label smoothing.

        Raises:
            ConfigError: the task's loss is over no classes.
        """
        raise ConfigError(
            f"optim.label_smoothing: a {self.type} task has no classes to spread labels over. Set it to 0."
        )

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return what is kept of a batch's outputs: a tensor of (rows, ...), or a tuple of them."""
        return outputs.logits

    def numbers(self, outputs: Any) -> tuple[Any, ...]:
        """Return what of the outputs two models are compared by: arrays of numbers, no tokens."""
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def answer(self, model: Any, batch: dict[str, Any], *, final: bool = True) -> tuple[Any, Any]:
        """Run the model on a batch that is measured or answered; return its loss, if any, and what is kept of it.

        Args:
            final: False in the evaluations while training, where a task may leave out what takes long (generating).
        """
        loss, outputs = self.forward(model, batch)
        return loss, self.outputs(outputs, batch)

    @abstractmethod
    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the task's metrics; where the task `counts_items`, also "loss", the mean over the items.

        Raises:
            AdapterLabError: the outputs hold NaN.
        """

    @abstractmethod
    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Turn outputs into answers, one dict for each of the rows."""

    def flat(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer as a table's row holds it; lists and mappings become JSON."""
        return {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            for key, value in answer.items()
        }

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Return the metrics of what the adapter has to beat, by name: the final table's first rows."""
        return {}

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Return what the report shows beside the metrics."""
        return []

    def score(self, predictions: Any, references: Any, scores: Any = None) -> dict[str, float]:
        """Compute the task's metrics of predictions (and their scores, where there are any) against references."""
        return compute(self.metrics, predictions, references, scores)

    def higher_is_better(self, metric: str) -> bool:
        """Say which way is up."""
        return METRICS.get(metric).higher_is_better

    def locator(self, name: str) -> Callable[[Sequence[int]], str]:
        """Return what words where rows of a split stand: file and line, where that is known."""
        if self.splits is not None and name in self.splits.named:
            return functools.partial(self.splits.locate, name)
        return lambda rows: f"row{'s' if len(rows) > 1 else ''} {some([row + 1 for row in rows])}"

    @property
    def eval_metrics(self) -> list[str]:
        """Those of the metrics that the evaluations while training compute; the others wait for the end."""
        return self.metrics

    @classmethod
    def suited_metrics(cls) -> list[str]:
        """Return the names of the metrics that measure this task, or one that it specialises."""
        kinds = {kind.type for kind in cls.__mro__ if issubclass(kind, Task)}
        return [name for name, spec in METRICS if kinds & {*spec.tasks}]

    def note(self, text: str) -> None:
        """Keep a note for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _check_metrics(self, names: Sequence[str], problems: list[str]) -> list[str]:
        suited = self.suited_metrics()
        checked: list[str] = []
        for name in names:
            known = name in METRICS and METRICS.canonical(name) in suited
            if not known:
                problems.append(f"task.metrics: {unknown_name(f'{self.type} metric', name, suited)}")
            elif METRICS.canonical(name) not in checked:
                checked.append(METRICS.canonical(name))
        if not names:
            problems.append(f"task.metrics is empty; name at least one of: {', '.join(suited)}")
        return checked

    def _word(self, item: Any) -> str:
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            return f"task.{key}: {unknown_name(f'{self.type} option', key, self.Options.model_fields)}"
        return f"task.{key}: {item['msg']} (given: {item['input']!r})"


def spread_evenly(logits: Any, labels: Any = None, items: Any = None) -> Any:
    """Return the mean cross-entropy of logits (..., classes) against even labels, where `labels` isn't -100.

    The sum is divided by `items`, if given, instead of by the number of positions.
    """
    values = -logits.float().log_softmax(-1).mean(-1)
    if labels is not None:
        values = values[labels != -100]
    return values.mean() if items is None else values.sum() / items


TASKS: Registry[type[Task]] = Registry("task type", group="adapterlab.tasks")

T = TypeVar("T", bound=type[Task])


def register_task(name: str, *aliases: str) -> Callable[[T], T]:
    """Register the decorated `Task` under `name`."""

    def decorate(task: T) -> T:
        task.type = name
        TASKS.register(name, task, aliases=aliases)
        return task

    return decorate
