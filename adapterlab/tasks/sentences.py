"""What a row of tagging holds: a text or words, tags or spans; read, checked, and brought to words and their tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapterlab.tasks.alignment import Range, find_words, join_words
from adapterlab.tasks.schemes import PLAIN, Span, spans_of, write


@dataclass(frozen=True)
class Sentence:
    """A text, where its words stand, and the words' tags: IOB2 or plain; None where they aren't known."""

    text: str
    words: list[Range]
    tags: list[str] | None
    is_split: bool  # it was given as words; the text is them with blanks between
    cuts: int = 0  # words that a span's border splits


def read_text(value: Any) -> str | list[str] | None:
    """Return a text, or a text's words, as they are; None for an empty one.

    Raises:
        ValueError: it is neither.
    """
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if not isinstance(value, list | tuple):
        raise ValueError(f"holds a {type(value).__name__} where a text or the list of its words is needed")
    for place, word in enumerate(value, 1):
        if isinstance(word, bool | list | dict | None) or not str(word).strip():
            raise ValueError(f"holds {word!r} as word {place} where a word is needed")
    return [str(word) for word in value] or None


def read_tags(value: Any) -> list[str] | list[dict[str, Any]] | None:
    """Return tags as strings, or spans as {start, end, label}; None where none are given.

    Raises:
        ValueError: it is neither.
    """
    if value is None or value != value:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"holds a {type(value).__name__} where a list is needed: a tag for each word, or spans")
    if any(isinstance(item, dict | list | tuple) for item in value):
        return [read_span(item) | {"label": _label(item)} for item in value]
    for place, tag in enumerate(value, 1):
        if isinstance(tag, bool | float | None) or not str(tag).strip():
            raise ValueError(f"holds {tag!r} as tag {place} where a name is needed")
    return [str(tag).strip() for tag in value]


def read_span(value: Any) -> dict[str, Any]:
    """Return a {start, end}, given so or as a list that begins with the two.

    Raises:
        ValueError: it isn't one.
    """
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end")]
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(type(place) is int for place in value[:2]):
        raise ValueError(
            f"holds {_short(value)} where a span is needed: {{start, end}} in whole numbers, end exclusive"
        )
    return {"start": value[0], "end": value[1]}


def misfit(text: str | Sequence[str], tags: Sequence[Any]) -> str | None:
    """Say why tags or spans don't belong to a text; None if they do."""
    has_spans = any(isinstance(tag, dict) for tag in tags)
    if isinstance(text, str):
        if tags and not has_spans:
            return "a tag for each word needs the text as a list of words, not as one string"
        return misplaced(text, tags)
    if has_spans:
        return "spans count characters and need the text as one string, not as a list of words"
    if len(text) != len(tags):
        return f"{len(text)} words have {len(tags)} tags"
    return None


def misplaced(text: str, spans: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which span lies outside the text, holds no word, or overlaps another one."""
    for span in spans:
        start, end = span["start"], span["end"]
        if not 0 <= start < end <= len(text):
            return f"span {start} to {end} isn't inside the text of {len(text)} characters"
        if not find_words(text[start:end]):
            return f"span {start} to {end} holds no word: {text[start:end]!r}"
    ordered = sorted(spans, key=lambda span: (span["start"], span["end"]))
    for one, other in pairwise(ordered):
        if other["start"] < one["end"]:
            both = " and ".join(f"{span['label']} {span['start']} to {span['end']}" for span in (one, other))
            return f"spans overlap ({both}), and a word can have one label only"
    return None


def read_sentence(text: str | Sequence[str] | None, tags: Sequence[Any] | None, scheme: str) -> Sentence:
    """Bring a row's clean values to words and tags."""
    if text is None or isinstance(text, str):
        text = text or ""
        spans = tags or ()
        borders = {border for span in spans for border in (span["start"], span["end"])}
        words = find_words(text, borders)
        if tags is None:
            return Sentence(text, words, None, False)
        found = write([_in_words(span, words) for span in spans], len(words))
        return Sentence(text, words, found, False, len(words) - len(find_words(text)) if spans else 0)
    joined, words = join_words(text)
    if tags is None or scheme == PLAIN:
        return Sentence(joined, words, None if tags is None else list(tags), True)
    return Sentence(joined, words, write(spans_of(tags, scheme), len(tags)), True)


def _in_words(span: Mapping[str, Any], words: Sequence[Range]) -> Span:
    inside = [place for place, (start, end) in enumerate(words) if start < span["end"] and end > span["start"]]
    return inside[0], inside[-1] + 1, span["label"]


def _label(item: Any) -> str:
    label = item.get("label") if isinstance(item, dict) else item[2] if len(item) > 2 else None
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise ValueError(f"holds a span with {label!r} for a label: {_short(item)}; a name is needed")
    return str(label).strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
