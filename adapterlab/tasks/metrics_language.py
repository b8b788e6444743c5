"""Metrics of language models: perplexity, from each row's summed loss and its number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adapterlab.tasks.metrics import MetricSpec, register_metric

PERPLEXITY = "perplexity"
GENERAL = "general_perplexity"  # the same, of the general text that isn't to be forgotten
TASKS = ("masked_lm", "causal_lm")
_MOST = 700.0  # e to this is still a number


def perplexity(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """Return e to the mean loss of a token; infinite where there is no token."""
    count = sum(tokens)
    return math.exp(min(sum(losses) / count, _MOST)) if count else math.inf


def _builder(name: str, summary: str) -> Callable[[], Any]:
    def build() -> Any:
        import evaluate
        from datasets import Features, Value

        class Perplexity(evaluate.Metric):
            """Predictions are losses summed over a row's tokens, references how many tokens there are."""

            def _info(self) -> Any:
                numbers = Features({"predictions": Value("float64"), "references": Value("float64")})
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=numbers)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
                return {name: perplexity(predictions, references)}

        return Perplexity(config_name=name, keep_in_memory=True)

    return build


for _name, _summary in (
    (PERPLEXITY, "between how many tokens the model wavers on held-out text; e to the mean loss"),
    (GENERAL, "the same on general text, data.replay: what is forgotten shows here"),
):
    register_metric(
        MetricSpec(_name, _summary, _builder(_name, _summary), TASKS, higher_is_better=False, is_share=False)
    )
