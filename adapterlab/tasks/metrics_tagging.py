"""Metrics of tagging: entities by seqeval, tags by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from adapterlab.tasks.metrics import MetricSpec, register_metric

Tags = Sequence[Sequence[str]]

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")


def _register(name: str, summary: str, score: Callable[[Tags, Tags], float]) -> None:
    def build() -> Any:
        import evaluate
        from datasets import Features, List, Value

        class TagMetric(evaluate.Metric):
            """A score of rows of tags under a name of ours."""

            def _info(self) -> Any:
                tags = Features({"predictions": List(Value("string")), "references": List(Value("string"))})
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=tags)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Tags, references: Tags) -> dict[str, float]:
                return {name: float(score(references, predictions))}

        return TagMetric(config_name=name, keep_in_memory=True)

    register_metric(MetricSpec(name, summary, build, ("tagging",)))


def _entities(measure: str) -> Callable[[Tags, Tags], float]:
    def score(true: Tags, predicted: Tags) -> float:
        import seqeval.metrics

        return float(getattr(seqeval.metrics, f"{measure}_score")(true, predicted, zero_division=0))

    return score


def _token_accuracy(true: Tags, predicted: Tags) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score([*chain(*true)], [*chain(*predicted)]))


def _token_f1(true: Tags, predicted: Tags) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score([*chain(*true)], [*chain(*predicted)], average="macro", zero_division=0))


_register("entity_f1", "harmonic mean of entity_precision and entity_recall, all entities pooled", _entities("f1"))
_register("entity_precision", "share of entities found whose words and label are right", _entities("precision"))
_register("entity_recall", "share of the entities there are that are found, words and label", _entities("recall"))
_register("token_accuracy", "share of words whose tag is right", _token_accuracy)
_register("token_f1", "mean over the tags of precision and recall's harmonic mean", _token_f1)
