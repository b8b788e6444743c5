"""Metrics of language models: perplexity, from each row's summed loss and its number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adapterlab.tasks.metrics import MetricSpec, number_metric, register_metric
from adapterlab.tasks.metrics_text import TASKS as WRITING
from adapterlab.tasks.metrics_text import metric_over

PERPLEXITY = "perplexity"
GENERAL = "general_perplexity"  # the same, of the general text that isn't to be forgotten
SENTENCE_ACCURACY = "sentence_accuracy"
RAW = ("masked_lm", "causal_lm")  # the tasks that learn from raw text
_MOST = 700.0  # e to this is still a number


def perplexity(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """Return e to the mean loss of a token; infinite where there is no token."""
    count = sum(tokens)
    return math.exp(min(sum(losses) / count, _MOST)) if count else math.inf


for _name, _summary, _tasks in (
    (PERPLEXITY, "between how many tokens the model wavers on held-out text; e to the mean loss", (*RAW, *WRITING)),
    (GENERAL, "the same on general text, data.replay: what is forgotten shows here", RAW),
):
    _build = metric_over(_name, _summary, "float64", perplexity)  # of rows' losses, and their numbers of tokens
    register_metric(MetricSpec(_name, _summary, _build, _tasks, higher_is_better=False, is_share=False))

_SUMMARY = "share of the pairs of segments that are told right from wrong; half of them are wrong"
_share_equal = number_metric(SENTENCE_ACCURACY, _SUMMARY, lambda true, found: float((true == found).mean()), (0, 0))
register_metric(MetricSpec(SENTENCE_ACCURACY, _SUMMARY, _share_equal, ("masked_lm",)))
