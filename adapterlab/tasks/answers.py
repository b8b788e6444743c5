"""Answers in a context: reading them from SQuAD's and simpler records, and finding them in a model's outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray[Any, Any]


def read_answers(value: Any) -> list[dict[str, Any]] | None:
    """Return answers as a list of {text, start}; an empty list is "no answer", None is nothing said.

    Args:
        value: SQuAD's `{"text": [...], "answer_start": [...]}`, a list of `{"text": ..., "start": ...}`, one of
            these alone, or the JSON of any of them.

    Raises:
        ValueError: it is something else.
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"holds {_short(value)!r}, which is no JSON; {_FORMS}") from None
    if isinstance(value, dict):
        starts = value.get("answer_start", value.get("start"))
        if not isinstance(value.get("text"), list):
            value = [value]
        elif isinstance(starts, list) and len(starts) == len(value["text"]):
            value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
        else:
            raise ValueError(f"has {len(value['text'])} texts, and not as many starts; {_FORMS}")
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"holds {_short(value)!r}; {_FORMS}")
    return [_answer(one) for one in value]


def _answer(given: dict[str, Any]) -> dict[str, Any]:
    text, start = given.get("text"), given.get("answer_start", given.get("start"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"has an answer without a text: {_short(given)}; no answer is an empty list")
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise ValueError(f"has an answer without a start, counted in characters from 0: {_short(given)}")
    return {"text": text.strip(), "start": start + len(text) - len(text.lstrip())}


def misplaced(answer: dict[str, Any], context: str) -> str | None:
    """Say that an answer isn't where it is said to be, and where it is if that is clear."""
    text, start = answer["text"], answer["start"]
    there = context[start : start + len(text)]
    if there == text:
        return None
    found = f"the context has {_short(there)!r} there" if there else f"the context has {len(context)} characters"
    first = context.find(text)
    if first < 0:
        return f"the answer {_short(text)!r} isn't at {start} ({found}), nor anywhere else in the context"
    if context.find(text, first + 1) < 0:
        return f"the answer {_short(text)!r} isn't at {start} ({found}); it occurs once: start {first}"
    return f"the answer {_short(text)!r} isn't at {start} ({found}); it occurs {context.count(text)} times elsewhere"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


_FORMS = 'give {"text": [...], "answer_start": [...]} or [{"text": ..., "start": ...}]; [] where there is no answer'


@dataclass
class Found:
    """The spans that compete for one question, over all windows of its context: (start, end) → score."""

    spans: dict[tuple[int, int], float]
    null: float = float("inf")  # of "no answer": the lowest of all windows, as SQuAD 2.0's baselines take it

    def best(self, count: int) -> list[tuple[float, int, int]]:
        """Return the best spans, the best first."""
        ordered = sorted(self.spans.items(), key=lambda item: (-item[1], item[0]))[:count]
        return [(score, start, end) for (start, end), score in ordered]


def add_window(
    found: Found, start: Vector, end: Vector, begins: Sequence[int], ends: Sequence[int], null: int, *, longest: int,
    count: int,
) -> None:  # fmt: skip
    """Enter the best spans of one window.

    Args:
        found: the question's.
        start: the logits of starts, (tokens,) or longer.
        end: those of ends.
        begins: where in the context each token begins; -1 for a token outside it.
        ends: where it ends.
        null: the token that stands for "no answer".
        longest: tokens of a span at most.
        count: spans to enter at most.
    """
    found.null = min(found.null, float(start[null] + end[null]))
    inside = np.flatnonzero(np.asarray(begins) >= 0)
    if not len(inside):
        return
    first, size = int(inside[0]), len(inside)
    longest = min(longest, size)
    padded = np.concatenate([end[first : first + size], np.full(longest - 1, -np.inf)])
    scores = start[first : first + size, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    flat = scores.ravel()
    for place in np.argpartition(-flat, min(count, len(flat)) - 1)[:count]:
        if np.isfinite(flat[place]):
            token, more = divmod(int(place), longest)
            span = (begins[first + token], ends[first + token + more])
            if span[1] > span[0]:
                found.spans[span] = max(found.spans.get(span, -np.inf), float(flat[place]))
