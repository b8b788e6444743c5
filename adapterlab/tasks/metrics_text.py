"""Metrics of texts against a reference text: ROUGE, BLEU, chrF and exact match."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from adapterlab.tasks.metrics import MetricSpec, register_metric

TASKS = ("instruction", "seq2seq")

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # written without spaces: each character counts as a word
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


class Words:
    """Splits texts for ROUGE: as rouge-score does English ones, and those of other scripts, which it would drop."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case."""
        return _WORD.findall(text.lower())


def metric_over(name: str, summary: str, columns: str, score: Callable[[Any, Any], float]) -> Callable[[], Any]:
    """Return a builder of an `evaluate.Metric` over columns of a type."""

    def build() -> Any:
        import evaluate
        from datasets import Features, Value

        class TextMetric(evaluate.Metric):
            """A score under a name of ours."""

            def _info(self) -> Any:
                features = Features({"predictions": Value(columns), "references": Value(columns)})
                return evaluate.MetricInfo(description=summary, citation="", inputs_description="", features=features)

            def _build_data_dir(self) -> str:
                return ""  # all stays in memory: the base class would make a folder under the user's home

            def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
                return {name: float(score(predictions, references))}

        return TextMetric(config_name=name, keep_in_memory=True)

    return build


@cache
def _scorer(kind: str) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([kind], tokenizer=Words())


def _rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        scorer = _scorer(kind)
        pairs = zip(references, predictions, strict=True)
        return float(np.mean([scorer.score(reference, text)[kind].fmeasure for reference, text in pairs]))

    return score


def _sacrebleu(kind: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        import sacrebleu

        corpus: Any = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[kind]
        return float(corpus(list(predictions), [list(references)]).score)

    return score


def _exact_text(predictions: Sequence[str], references: Sequence[str]) -> float:
    return float(np.mean([text.split() == true.split() for text, true in zip(predictions, references, strict=True)]))


def _register(name: str, summary: str, score: Callable[[Any, Any], float], **how: Any) -> None:
    register_metric(MetricSpec(name, summary, metric_over(name, summary, "string", score), TASKS, **how))


_register("rouge1", "F of the words that text and reference share", _rouge("rouge1"))
_register("rouge2", "F of the pairs of neighbouring words that they share", _rouge("rouge2"))
_register("rougeL", "F of their longest common sequence of words", _rouge("rougeL"))
_register("bleu", "corpus BLEU, 0 to 100, as sacrebleu counts it", _sacrebleu("bleu"), is_share=False)
_register("chrf", "corpus chrF, 0 to 100: shared sequences of characters", _sacrebleu("chrf"), is_share=False)
_register("exact_text", "share of texts that equal their reference, white space aside", _exact_text)
