"""Windows of a text's words: what a tagger reads, and from what it says of each, a tag for every word."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adapterlab.errors import AdapterLabError
from adapterlab.tasks.alignment import Range, Window, read_windows
from adapterlab.tasks.encoding import TOLD
from adapterlab.tasks.exchange import Predictions
from adapterlab.tasks.sentences import Sentence

COUNTED = ("long", "cut", "unseen", "split", "shared")  # what the numbers in `TOLD` are of


class WordWindows:
    """Encodes batches of sentences; what happens to their words is counted in the column `TOLD`.

    Args:
        tokenizer: a fast one.
        limit: tokens of a window.
        stride: tokens that windows share.
        labels: the tags, in the order of their numbers.
        cuts: leave what doesn't fit the first window out.
        all_pieces: number every piece of a word, not the first one only.
    """

    def __init__(
        self, tokenizer: Any, limit: int, stride: int, labels: Sequence[str], cuts: bool, all_pieces: bool
    ) -> None:
        self.tokenizer, self.limit, self.stride = tokenizer, limit, stride
        self.numbers = {tag: number for number, tag in enumerate(labels)}
        self.cuts, self.all_pieces = cuts, all_pieces

    def encode(self, sentences: Sequence[Sentence], rows: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns of the sentences' windows; `rows` are their numbers."""
        columns: dict[str, list[Any]] = defaultdict(list)
        windows, unseen = self._windows(sentences)
        count = Counter(window.row for window in windows)
        last = None
        for window in windows:
            sentence, begins = sentences[window.row], window.row != last
            if self.cuts and not begins:
                continue
            last, long = window.row, count[window.row] > 1
            cut = len(sentence.words) - len(window.heads) if self.cuts and long else 0
            shared = sum(window.owners[place] != word for word, place in window.heads.items())
            of_row = (int(long), cut, unseen[window.row], sentence.cuts) if begins else (0, 0, 0, 0)
            columns[TOLD].append([*of_row, shared])
            for key, values in window.inputs.items():
                columns[key].append(values)
            columns["_row"].append(rows[window.row])
            columns["_words"].append(list(window.heads))
            columns["_places"].append(list(window.heads.values()))
            if sentence.tags is not None:
                columns["labels"].append(
                    [self._number(window, place, sentence.tags) for place in range(len(window.owners))]
                )
        return columns

    def _windows(self, sentences: Sequence[Sentence]) -> tuple[list[Window], list[int]]:
        """Tokenise; where a word vanishes, the tokenizer is shown its sign for unknown words in its place.

        Returns:
            the windows, and how many words of each sentence vanished.
        """
        texts, words = [sentence.text for sentence in sentences], [sentence.words for sentence in sentences]
        windows = list(read_windows(self.tokenizer, texts, words, self.limit, self.stride))
        lost = [set(range(len(own))) for own in words]
        for window in windows:
            lost[window.row] -= window.heads.keys()
        if any(lost):
            sign = self.tokenizer.unk_token or "?"
            shown = [_replaced(*parts, sign) for parts in zip(texts, words, lost, strict=True)]
            texts, words = [text for text, _ in shown], [ranges for _, ranges in shown]
            windows = list(read_windows(self.tokenizer, texts, words, self.limit, self.stride))
        return windows, list(map(len, lost))

    def _number(self, window: Window, place: int, tags: Sequence[str]) -> int:
        word = window.owners[place]
        is_head = window.heads.get(word) == place
        if word < 0 or not (is_head or self.all_pieces):
            return -100
        inner = f"I-{tags[word][2:]}"
        if not is_head and tags[word].startswith("B-") and inner in self.numbers:
            return self.numbers[inner]
        return self.numbers[tags[word]]


def decide(seen: Predictions, sentences: Iterable[Sentence]) -> list[tuple[list[int], list[float]]]:
    """Return the tag of each word of each row, and its probability, from the window that shows most around it.

    Raises:
        AdapterLabError: the outputs hold NaN.
    """
    sizes = [len(sentence.words) for sentence in sentences]
    tags, scores = [np.zeros(size, int) for size in sizes], [np.zeros(size) for size in sizes]
    margins = [np.full(size, -1) for size in sizes]
    encoded = (seen.encoded[name] for name in ("_row", "_words", "_places", "input_ids"))
    for logits, row, words, places, ids in zip(seen.outputs, *encoded, strict=True):
        if not words:
            continue
        at, of = np.asarray(places), np.asarray(words)
        values = np.asarray(logits, dtype=np.float64)[at]
        if np.isnan(values).any():
            raise AdapterLabError(
                "the model gives NaN: training has diverged. Lower optim.lr, or set optim.precision=fp32."
            )
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        margin = np.minimum(at, len(ids) - 1 - at)
        better = margin > margins[row][of]
        of = of[better]
        margins[row][of] = margin[better]
        tags[row][of] = values.argmax(axis=-1)[better]
        scores[row][of] = (powers.max(axis=-1) / powers.sum(axis=-1))[better]
    return [(list(map(int, found)), list(map(float, sure))) for found, sure in zip(tags, scores, strict=True)]


def _replaced(text: str, words: Sequence[Range], places: set[int], sign: str) -> tuple[str, list[Range]]:
    """Put a sign in the place of some words; return the text, and where words stand in it."""
    parts: list[str] = []
    ranges, length, last = [], 0, 0
    for place, (start, end) in enumerate(words):
        word = sign if place in places else text[start:end]
        length += start - last
        ranges.append((length, length + len(word)))
        parts += [text[last:start], word]
        length, last = length + len(word), end
    return "".join([*parts, text[last:]]), ranges
