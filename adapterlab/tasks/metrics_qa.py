"""Exact match and F1 of answers as SQuAD's script has them: kept libraries know v1.1 only, or fetch the script."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from adapterlab.tasks.metrics import MetricSpec, register_metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, true: str) -> float:
    """Say whether two answers are the same but for case, punctuation and articles: 1.0 or 0.0."""
    return float(normalise(given) == normalise(true))


def overlap(given: str, true: str) -> float:
    """Return the F1 of the words two answers share; where one of them is no answer, whether both are."""
    one, other = normalise(given).split(), normalise(true).split()
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))


def _register(name: str, summary: str, score: Callable[[str, str], float], *aliases: str) -> None:
    def build() -> Any:
        import evaluate
        from datasets import Features, List, Value

        class AnswerMetric(evaluate.Metric):
            """The mean over questions of the score against the true answer that is nearest; none is no answer."""

            def _info(self) -> Any:
                texts = Features({"predictions": Value("string"), "references": List(Value("string"))})
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=texts)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
                best = [
                    max(score(given, text) for text in (true or [""]))
                    for given, true in zip(predictions, references, strict=True)
                ]
                return {name: sum(best) / len(best)}

        return AnswerMetric(config_name=name, keep_in_memory=True)

    register_metric(MetricSpec(name, summary, build, tasks=("qa",)), *aliases)


_register("exact_match", "share of answers that are a true one, but for case, punctuation, articles", exact_match, "em")
_register("answer_f1", "mean overlap in words of an answer and the nearest true one", overlap, "squad_f1")
