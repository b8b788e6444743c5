"""Metrics: `evaluate.Metric` subclasses over scikit-learn and scipy. Nothing is fetched, nothing found is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from adapterlab.errors import AdapterLabError, DataError
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
        of: what it is computed of: the task's "answers", or its "scores" (a row of probabilities, say, each).
        is_share: whether differences are told in points (hundredths); else in per cent.
    """

    name: str
    summary: str
    build: Callable[[], Any]
    tasks: tuple[str, ...] = ("classification",)
    higher_is_better: bool = True
    of: Literal["answers", "scores"] = "answers"
    is_share: bool = True


METRICS: Registry[MetricSpec] = Registry("metric", group="adapterlab.metrics")


def register_metric(spec: MetricSpec, *aliases: str) -> MetricSpec:
    """Make a metric known under its name and aliases."""
    return METRICS.register(spec.name, spec, aliases=aliases)


def compute(names: Sequence[str], predictions: Any, references: Any, scores: Any = None) -> dict[str, float]:
    """Compute metrics of predictions against what is true (for classes: their numbers).

    Args:
        scores: what metrics that rank are computed of, a row each.

    Raises:
        AdapterLabError: a metric is of scores, and there are none.
    """
    values: dict[str, float] = {}
    for name in map(METRICS.canonical, names):
        given = scores if METRICS.get(name).of == "scores" else predictions
        if given is None:
            raise AdapterLabError(f"{name} is computed of scores, and none are given: compute(..., scores=...).")
        values |= _built(name).compute(predictions=given, references=references)
    return values


@cache
def _built(name: str) -> Any:
    return METRICS.get(name).build()


def _metric(name: str, summary: str, score: Callable[[Any, Any], float], *kinds: tuple[Any, Any]) -> Callable[[], Any]:
    """Return a builder of an `evaluate.Metric`.

    Args:
        kinds: what a prediction and a reference may be, each as an example: 0, 0.0, [0] or [0.0].
    """

    def build() -> Any:
        import evaluate
        from datasets import Features, List, Value

        def feature(example: Any) -> Any:
            if isinstance(example, list):
                return List(feature(example[0]))
            return Value("int64" if isinstance(example, int) else "float64")

        class Score(evaluate.Metric):
            """A score of scikit-learn or scipy under a name of ours."""

            def _info(self) -> Any:
                features = [Features({"predictions": feature(p), "references": feature(r)}) for p, r in kinds]
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=features)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
                return {name: float(score(np.asarray(references), np.asarray(predictions)))}

        return Score(config_name=name, keep_in_memory=True)

    return build


def _sklearn(function: str, **options: Any) -> Callable[[Any, Any], float]:
    """Return a score of scikit-learn's, imported when it is first needed."""

    def score(true: Any, predicted: Any) -> float:
        from sklearn import metrics

        return float(getattr(metrics, function)(true, predicted, **options))

    return score


def _roc_auc(true: Any, scores: Any) -> float:
    """Of classes: each against the rest. Classes that no row, or every row, has can't be ranked and don't count."""
    from sklearn.metrics import roc_auc_score

    truth = true if true.ndim == 2 else np.eye(scores.shape[1], dtype=int)[true]
    areas = [roc_auc_score(t, s) for t, s in zip(truth.T, scores.T, strict=True) if 0 < t.sum() < len(t)]
    if not areas:
        raise DataError("roc_auc needs rows of two classes at least, and these are all of one.")
    return float(np.mean(areas))


def _correlation(function: str) -> Callable[[Any, Any], float]:
    def score(true: Any, predicted: Any) -> float:
        from scipy import stats

        if np.ptp(true) == 0 or np.ptp(predicted) == 0:  # undefined: what never changes goes along with nothing
            return 0.0
        return float(getattr(stats, function)(true, predicted).statistic)

    return score


def _classes(name: str, summary: str, score: Callable[[Any, Any], float], *aliases: str, one: bool = False) -> None:
    """Register a metric over class numbers, and unless it is for `one` class a row, over rows of 0 and 1."""
    kinds = [(0, 0)] if one else [(0, 0), ([0], [0])]
    tasks = ("classification",) if one else ("classification", "multilabel")
    register_metric(MetricSpec(name, summary, _metric(name, summary, score, *kinds), tasks), *aliases)


def _numbers(name: str, summary: str, score: Callable[[Any, Any], float], *aliases: str, error: bool = False) -> None:
    """Register a metric over numbers; an `error` is better the lower."""
    build = _metric(name, summary, score, (0.0, 0.0))
    spec = MetricSpec(name, summary, build, ("regression",), higher_is_better=not error, is_share=not error)
    register_metric(spec, *aliases)


def _mean(function: str, average: str = "macro") -> Callable[[Any, Any], float]:
    return _sklearn(function, average=average, zero_division=0)


_classes(
    "accuracy", "share of rows whose class (or whole set of labels) is predicted", _sklearn("accuracy_score"), "acc"
)
_classes("f1", "mean over the classes of precision and recall's harmonic mean", _mean("f1_score"), "f1_macro")
_classes("f1_micro", "F1 of all decisions pooled; with one class a row, accuracy", _mean("f1_score", "micro"))
_classes("f1_weighted", "mean F1 over the classes, each weighted by its rows", _mean("f1_score", "weighted"))
_classes("precision", "mean over the classes of the share of predictions that are right", _mean("precision_score"))
_classes("recall", "mean over the classes of the share of rows that are found", _mean("recall_score"))
_classes(
    "mcc", "Matthews correlation, -1 to 1; 0 is chance, whatever the classes' sizes", _sklearn("matthews_corrcoef"),
    "matthews", one=True,
)  # fmt: skip
_AUC = "area under the ROC curve, mean over the classes, each against the rest; 0.5 is chance"
register_metric(
    MetricSpec(
        "roc_auc", _AUC, _metric("roc_auc", _AUC, _roc_auc, ([0.0], 0), ([0.0], [0])),
        ("classification", "multilabel"), of="scores",
    ),
    "auc",
)  # fmt: skip
_numbers("pearson", "linear correlation, -1 to 1; 0 where all predictions are equal", _correlation("pearsonr"))
_numbers("spearman", "correlation of ranks, -1 to 1; 0 where all predictions are equal", _correlation("spearmanr"))
_numbers("r2", "share of the variance that is explained; 0 is the mean's, below is worse", _sklearn("r2_score"))
_numbers("mae", "mean absolute error, in the labels' units", _sklearn("mean_absolute_error"), error=True)
_numbers("mse", "mean squared error", _sklearn("mean_squared_error"), error=True)
_numbers(
    "rmse", "root of the mean squared error, in the labels' units", _sklearn("root_mean_squared_error"), error=True
)
