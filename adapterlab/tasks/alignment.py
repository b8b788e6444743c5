"""Words and a tokenizer's pieces: where words stand in a text, and which pieces are whose.

Texts are tokenised as they are, and pieces find their words by the offsets: so it doesn't matter how a tokenizer
splits words, or whether it wants a blank in front of them (RoBERTa, GPT-2).
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adapterlab.errors import BackboneError

Range = tuple[int, int]  # characters, end exclusive

# Scripts that put no blanks between words: each character counts as one.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


def find_words(text: str, borders: Collection[int] = ()) -> list[Range]:
    """Split a text into words: runs of letters, digits and marks; every other sign that shows is one of its own.

    Args:
        text: any.
        borders: places where a word ends, if one is there: those of spans.
    """
    words: list[Range] = []
    joins = False  # whether the next letter belongs to the last word
    for place, char in enumerate(text):
        kind = unicodedata.category(char)[0]
        if kind in "ZC":  # blanks, control and format characters, unassigned ones
            joins = False
        elif words and words[-1][1] == place and place not in borders and (kind == "M" or (joins and kind in "LN")):
            words[-1] = (words[-1][0], place + 1)
            joins = joins and not _is_unspaced(char)
        else:
            words.append((place, place + 1))
            joins = kind in "LNM" and not _is_unspaced(char)
    return words


def join_words(words: Sequence[str]) -> tuple[str, list[Range]]:
    """Return words with a blank between them, and where each stands."""
    ranges, place = [], 0
    for word in words:
        ranges.append((place, place + len(word)))
        place += len(word) + 1
    return " ".join(words), ranges


@dataclass(frozen=True)
class Window:
    """The pieces of a text, or of a part of it."""

    inputs: dict[str, list[int]]  # for the model
    owners: list[int]  # the word of each piece; -1: none's
    heads: dict[int, int]  # the piece that speaks for a word, by word
    row: int  # of the texts


def read_windows(
    tokenizer: Any, texts: Sequence[str], words: Sequence[Sequence[Range]], limit: int, stride: int
) -> Iterator[Window]:
    """Tokenise texts, in overlapping windows of `limit` tokens where they are longer.

    A piece belongs to the word in which it begins. A word in which none begins (a span's border splits a piece)
    shares the piece that reaches into it, if there is one.
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=limit,
        stride=min(stride, max(0, (limit - tokenizer.num_special_tokens_to_add()) // 2)),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    for number, (row, pieces) in enumerate(zip(rows, offsets, strict=True)):
        inputs = {name: values[number] for name, values in encoded.items()}
        if not inputs["input_ids"]:  # a model can't run on nothing
            inputs = {name: [tokenizer.pad_token_id if name == "input_ids" else 0] for name in inputs}
            pieces = [(0, 0)]
        owners, heads = _align(pieces, encoded.sequence_ids(number) or [None], words[row], texts[row])
        first = next((place for place, word in enumerate(owners) if word >= 0), None)
        if number and rows[number - 1] == row and first is not None and pieces[first][0] > words[row][owners[first]][0]:
            heads.pop(owners[first], None)  # the window begins inside a word, whose first piece the last one has
        yield Window(inputs, owners, heads, row)


def need_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that can't say where in the text its pieces stand.

    Raises:
        BackboneError: it can't.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise BackboneError(
            f"{type(tokenizer).__name__} can't say where in the text its tokens stand, which this task needs. Use a "
            "backbone with a fast tokenizer (a tokenizer.json), or convert this one: "
            "transformers.AutoTokenizer.from_pretrained(NAME, use_fast=True).save_pretrained(FOLDER)."
        )


def _align(
    pieces: Sequence[Range], sides: Sequence[int | None], words: Sequence[Range], text: str
) -> tuple[list[int], dict[int, int]]:
    starts = [start for start, _ in words]
    owners: list[int] = []
    heads: dict[int, int] = {}
    shared: dict[int, int] = {}
    for place, ((start, end), side) in enumerate(zip(pieces, sides, strict=True)):
        while start < end and text[start].isspace():  # byte-level pieces hold the blank in front
            start += 1
        first = max(bisect_right(starts, start) - 1, 0)
        touched = []
        while side is not None and first < len(words) and words[first][0] < end:
            if words[first][1] > start:
                touched.append(first)
            first += 1
        owners.append(touched[0] if touched else -1)
        if touched:
            heads.setdefault(touched[0], place)
            for word in touched[1:]:
                shared.setdefault(word, place)
    return owners, shared | heads


def _is_unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)
