"""Words of a domain that a tokenizer doesn't know as such: frequent ones that it reads in many pieces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"[^\W\d_]\w*")
_LEAST_PIECES = 3
_LEAST_COUNT = 5  # what stands in the corpus less often has nothing to learn from


def find_words(texts: Iterable[str], tokenizer: Any, most: int) -> list[str]:
    """Return up to `most` words, those first that spare the corpus most pieces.

    Args:
        texts: the corpus.
        tokenizer: how it reads now.
        most: so many words at most.
    """
    lower = bool(getattr(tokenizer, "do_lower_case", False))
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower() if lower else text))
    known = tokenizer.get_vocab()
    often = [word for word, count in counts.items() if count >= _LEAST_COUNT and word not in known]
    pieces = {word: len(tokenizer.tokenize(f" {word}")) for word in often}
    found = [word for word in often if pieces[word] >= _LEAST_PIECES]
    return sorted(found, key=lambda word: (-counts[word] * (pieces[word] - 1), word))[:most]
