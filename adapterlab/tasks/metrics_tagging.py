"""Metrics of tagging: entities by seqeval, tags by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from adapterlab.tasks.metrics import MetricSpec, register_metric, scored_by

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")


def _entities(measure: str) -> Callable[[Any, Any], float]:
    def score(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
        import seqeval.metrics

        return float(getattr(seqeval.metrics, f"{measure}_score")(true, predicted, zero_division=0))

    return score


def _token_accuracy(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(list(chain(*true)), list(chain(*predicted))))


def _token_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(list(chain(*true)), list(chain(*predicted)), average="macro", zero_division=0))


for _name, _summary, _score in (
    ("entity_f1", "harmonic mean of entity_precision and entity_recall, all entities pooled", _entities("f1")),
    ("entity_precision", "share of the entities found whose words and label are right", _entities("precision")),
    ("entity_recall", "share of the entities there are that are found, words and label right", _entities("recall")),
    ("token_accuracy", "share of words whose tag is right", _token_accuracy),
    ("token_f1", "mean over the tags of precision and recall's harmonic mean", _token_f1),
):
    register_metric(MetricSpec(_name, _summary, scored_by(_score, _name, _summary, sequences=True), ("tagging",)))
