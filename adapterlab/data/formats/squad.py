"""SQuAD's nested JSON (v1.1 and v2.0): articles of paragraphs of questions, flattened to a row a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterlab.errors import DataError


def is_squad(content: Any) -> bool:
    """Whether parsed JSON has articles with paragraphs."""
    articles = content.get("data") if isinstance(content, dict) else None
    return isinstance(articles, list) and any(isinstance(one, dict) and "paragraphs" in one for one in articles)


def flatten(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return a row for each question, as the data set has them on the Hub.

    A row has id, title, context, question, answers (`{"text": [...], "answer_start": [...]}`; None where the file
    gives none, as a test set's doesn't) and is_impossible (v2.0; False in v1.1).

    Raises:
        DataError: an article, paragraph or question lacks what it must have; the message says which.
    """
    rows = []
    for a, article in enumerate(content["data"], 1):
        where = f"article {a}"
        for p, paragraph in enumerate(_get(article, "paragraphs", list, where, path), 1):
            where = f"article {a}, paragraph {p}"
            context = _get(paragraph, "context", str, where, path)
            for q, entry in enumerate(_get(paragraph, "qas", list, where, path), 1):
                where = f"article {a}, paragraph {p}, question {q}"
                row = {
                    "id": str(entry.get("id", "")) if isinstance(entry, dict) else "",
                    "title": str(article.get("title") or ""),
                    "context": context,
                    "question": _get(entry, "question", str, where, path),
                    "answers": None,
                    "is_impossible": bool(entry.get("is_impossible", False)),
                }
                if row["is_impossible"] or "answers" in entry:
                    row["answers"] = _answers(entry, where, path)
                rows.append(row)
    return rows


def _answers(entry: dict[str, Any], where: str, path: Path) -> dict[str, list[Any]]:
    # an unanswerable question's wrong answers, "plausible_answers", are not its answers
    given = _get(entry, "answers", list, where, path) if "answers" in entry else []
    return {
        "text": [_get(answer, "text", str, where, path) for answer in given],
        "answer_start": [_get(answer, "answer_start", int, where, path) for answer in given],
    }


def _get(holder: Any, key: str, kind: type, where: str, path: Path) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        names = {list: "a list", str: "a text", int: "a whole number"}
        found = "is missing" if value is None else f"is a {type(value).__name__}, not {names[kind]}"
        raise DataError(f"'{path}' looks like SQuAD, but {where}: '{key}' {found}")
    return value
