"""Metrics: `evaluate.Metric` subclasses over scikit-learn. Nothing is fetched, nothing found is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from adapterlab.registry import Registry


@dataclass(frozen=True)
class MetricSpec:
    """A metric's description and how to build it.

    Args:
        name: what it is called in recipes, tables and metrics.jsonl.
        summary: one line for people.
        build: returns an `evaluate.Metric`; called when the metric is first needed, so that it may import.
        tasks: the task types whose predictions it understands.
        higher_is_better: which way is up, for `eval.best` and patience.
        is_share: whether differences are told in points (hundredths); else in per cent.
    """

    name: str
    summary: str
    build: Callable[[], Any]
    tasks: tuple[str, ...] = ("classification",)
    higher_is_better: bool = True
    is_share: bool = True


METRICS: Registry[MetricSpec] = Registry("metric", group="adapterlab.metrics")


def register_metric(spec: MetricSpec, *aliases: str) -> MetricSpec:
    """Make a metric known under its name and aliases."""
    return METRICS.register(spec.name, spec, aliases=aliases)


def compute(names: Sequence[str], predictions: Any, references: Any) -> dict[str, float]:
    """Compute metrics of predictions against what is true (for classes: their numbers)."""
    values: dict[str, float] = {}
    for name in names:
        values |= _built(METRICS.canonical(name)).compute(predictions=predictions, references=references)
    return values


@cache
def _built(name: str) -> Any:
    return METRICS.get(name).build()


def _class_metric(name: str, summary: str, score: Callable[[Any, Any], float]) -> Callable[[], Any]:
    """Return a builder of an `evaluate.Metric` over class numbers."""

    def build() -> Any:
        import evaluate
        from datasets import Features, Value

        class ClassMetric(evaluate.Metric):
            """A scikit-learn score under a name of ours."""

            def _info(self) -> Any:
                numbers = Features({"predictions": Value("int64"), "references": Value("int64")})
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=numbers)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
                return {name: float(score(references, predictions))}

        return ClassMetric(config_name=name, keep_in_memory=True)

    return build


def _accuracy(true: Any, predicted: Any) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(true, predicted))


def _f1(average: str) -> Callable[[Any, Any], float]:
    def score(true: Any, predicted: Any) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(true, predicted, average=average, zero_division=0))

    return score


def _precision(true: Any, predicted: Any) -> float:
    from sklearn.metrics import precision_score

    return float(precision_score(true, predicted, average="macro", zero_division=0))


def _recall(true: Any, predicted: Any) -> float:
    from sklearn.metrics import recall_score

    return float(recall_score(true, predicted, average="macro", zero_division=0))


def _mcc(true: Any, predicted: Any) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(true, predicted))


def _register(name: str, summary: str, score: Callable[[Any, Any], float], *aliases: str) -> None:
    register_metric(MetricSpec(name, summary, _class_metric(name, summary, score)), *aliases)


_register("accuracy", "share of rows whose class is predicted", _accuracy, "acc")
_register("f1", "mean over the classes of precision and recall's harmonic mean", _f1("macro"), "f1_macro")
_register("f1_micro", "F1 of all decisions pooled; with one class a row it equals accuracy", _f1("micro"))
_register("precision", "mean over the classes of the share of predictions that are right", _precision)
_register("recall", "mean over the classes of the share of rows that are found", _recall)
_register("mcc", "Matthews correlation, -1 to 1; 0 is chance, whatever the classes' sizes", _mcc, "matthews")
