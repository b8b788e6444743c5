"""Class names: in which order, which are strangers, and how much each weighs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from adapterlab.errors import ConfigError, DataError, did_you_mean
from adapterlab.tasks.base import Task
from adapterlab.tasks.sentence import SentenceTask
from adapterlab.tasks.settings import TaskOptions

MANY = 20  # from so many classes on, a class for every other row is no class
_STRAY = 0.01  # of the rows at most: more of them are a class
_SHOWN = 6  # so many class names at most in a message


def _check_weights(value: Any) -> Any:
    if isinstance(value, dict) and value:
        # `{0: 1, 1: 3}` is what one writes for a column of digits; labels are compared as text.
        value = {str(label): weight for label, weight in value.items()}
        weights = [w for w in value.values() if isinstance(w, int | float) and not isinstance(w, bool)]
        if len(weights) == len(value) and all(0 < weight < math.inf for weight in weights):
            return value
    elif value in (None, "balanced"):
        return value
    raise ValueError("must be balanced, or a mapping of labels to numbers above 0, for example {spam: 5}")


Weights = Annotated[Literal["balanced"] | dict[str, float] | None, BeforeValidator(_check_weights)]


class WeightedOptions(TaskOptions):
    """Options of tasks whose classes may weigh differently."""

    class_weights: Weights = Field(
        None,
        description="How much rows of a class weigh in the loss: balanced (the rarer, the more), or a number for "
        "labels, 1 for the rest. Default: all the same.",
    )


class LabelledTask(SentenceTask):
    """A task whose labels are names of classes."""

    Options = WeightedOptions

    def learn_labels(self, given: Sequence[Sequence[str]]) -> Counter[str]:
        """Take the class names from train, unless they are named; check the weights'; return how many rows each has.

        Args:
            given: the labels of each row of train.

        Raises:
            DataError: they are too few or too many to be classes, or a few are numbers where the others are names.
            ConfigError: class_weights names a label that there isn't.
        """
        # as a set: data.label_map may make two labels of a row one
        counts, rows = Counter(label for labels in given for label in set(labels)), len(given)
        if len(counts) < 2:
            found = f"only one class, '{next(iter(counts))}'," if counts else "no label"
            raise DataError(
                f"train has {found} in {rows:,} rows; {self.type} needs two or more. "
                "Is data.columns.label the right column?"
            )
        if len(counts) > max(MANY, rows / 2):
            raise DataError(
                f"train has {len(counts):,} different labels in {rows:,} rows ({some(list(counts))}): "
                "that is no class per text. Is data.columns.label the right column?"
            )
        if self._labels_from == "train":
            named = self.column_names.get("label")
            self.labels = list(named) if isinstance(named, list) else sorted(counts, key=_by_number)
            if not isinstance(named, list):
                self._refuse_odd(counts, given)
        weights = self.options.class_weights
        strangers = [label for label in weights if label not in self.labels] if isinstance(weights, dict) else []
        if strangers:
            raise ConfigError(
                [
                    f"task.class_weights: there is no label '{label}'.{did_you_mean(label, self.labels)} "
                    f"{self._labels_from} has: {some(self.labels)}."
                    for label in strangers
                ]
            )
        if unused := [label for label in self.labels if label not in counts]:
            self.note(f"train has no row of {some(unused)}: the model can't learn what nobody shows it.")
        return counts

    def _refuse_odd(self, counts: Counter[str], given: Sequence[Sequence[str]]) -> None:
        """Refuse a stray number among names, or a stray name among numbers: a slip, unless the recipe names it."""
        numbers = {label for label in counts if _by_number(label)[0] == 0}
        odd = min(numbers, counts.keys() - numbers, key=lambda kind: sum(counts[label] for label in kind))
        rows = [row for row, labels in enumerate(given) if not odd.isdisjoint(labels)]
        if not 0 < len(rows) <= max(1, _STRAY * len(given)):
            return
        kind, others = ("number", "names") if odd <= numbers else ("name", "numbers")
        raise DataError(
            f"train has {some(sorted(odd))} among its labels ({len(rows):,} of {len(given):,} rows: "
            f"{self.locator('train')(rows)}): a {kind}, where the other labels are {others} "
            f"({some([label for label in self.labels if label not in odd])}). "
            "Mend those rows or leave them out, or name all classes in data.labels if that is one."
        )

    def keep_weights(self, weights: Mapping[str, float]) -> None:
        """Keep what each class weighs in the loss."""
        self.learned["class_weights"] = [weights.get(label, 1.0) for label in self.labels]
        shown = sorted(weights.items(), key=lambda pair: -pair[1])[:_SHOWN]
        told = ", ".join(f"{label} {weight:.3g}" for label, weight in shown)
        more = "" if len(weights) <= _SHOWN else f", and {len(weights) - _SHOWN} smaller ones"
        self.note(f"Weights in the loss: {told}{more}.")

    def refuse_strangers(self, labels: Sequence[Sequence[str]], name: str) -> None:
        """Refuse labels that the task doesn't know.

        Args:
            labels: those of each row.
            name: of the split, for the message.

        Raises:
            DataError: with those labels and where they stand.
        """
        self.need_fit()
        known, source = set(self.labels), self._labels_from
        rows = [row for row, given in enumerate(labels) if not known.issuperset(given)]
        if not rows:
            return
        strangers = list(dict.fromkeys(label for row in rows for label in labels[row] if label not in known))
        fixes = {"data.labels": "Add them to data.labels", "train": "Mend the labels, name all of them in data.labels"}
        raise DataError(
            f"{name} holds labels that {source} doesn't have: {some(strangers)} "
            f"({len(rows):,} of {len(labels):,} rows: {self.locator(name)(rows)})."
            f"{did_you_mean(strangers[0], known)} {source} has: {some(self.labels)}. "
            f"{fixes.get(source, 'Mend the labels')}, or leave those rows out."
        )

    def model_kwargs(self) -> dict[str, Any]:
        """Return the number of classes and their names, both ways."""
        self.need_fit()
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }


def tell(task: Task, counts: Counter[str], rows: int) -> str:
    """Say how many classes there are, and how large the largest are."""
    shown = ", ".join(f"{label} {n:,} ({n / rows:.0%})" for label, n in counts.most_common(_SHOWN))
    more = f", and {len(counts) - _SHOWN} smaller ones" if len(counts) > _SHOWN else ""
    return f"{len(task.labels)} classes; in train: {shown}{more}."


def some(labels: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(f"'{label}'" for label in labels[:_SHOWN])
    return f"{shown} and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else shown


def _by_number(label: str) -> tuple[int, float, str]:
    """Sort '2' before '10', and numbers before names."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)
