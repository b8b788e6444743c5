"""Tags and spans: IOB1, IOB2, IOBES, BILOU, BMES and IO are read alike; what each would write shows what is invalid.

A span is (start, end, label) in words, end exclusive. The model learns IOB2, whatever the files say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Span = tuple[int, int, str]

OUTSIDE, PLAIN, IO = "O", "plain", "io"
_LETTERS = {"iob2": "BIIB", "iob1": "IIII", "iobes": "BIES", "bilou": "BILU", "bmes": "BMES", IO: "IIII"}
SCHEMES = (*_LETTERS, PLAIN)  # the four letters: first, inner and last word of a span, and a span of one word
_TAG = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)


def detect(sequences: Iterable[Sequence[str]]) -> str:
    """Return the scheme that explains most tags; tags without prefixes are plain ones."""
    rows = [list(tags) for tags in dict.fromkeys(tuple(tags) for tags in sequences)]
    kinds = {tag for tags in rows for tag in tags} - {OUTSIDE}
    found = [_TAG.fullmatch(kind) for kind in kinds]
    if not found or not all(found):
        return PLAIN
    used = {match[1] for match in found if match}
    fitting = [name for name, letters in _LETTERS.items() if name != IO and used <= {*letters, "B"}]
    return min(fitting, key=lambda name: sum(len(faults(tags, name)) for tags in rows), default=PLAIN)


def spans_of(tags: Sequence[str], scheme: str = "iob2") -> list[Span]:
    """Read spans leniently, as conlleval and seqeval do: an inner tag that continues nothing begins a span."""
    spans: list[Span] = []
    start, label, is_open = 0, "", False
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = _parts(tag, scheme)
        if is_open and (letter in ("", "B", "S", "U") or kind != label):
            spans.append((start, place, label))
            is_open = False
        if letter and not is_open:
            start, label, is_open = place, kind, True
        if is_open and letter in ("E", "L", "S", "U"):
            spans.append((start, place + 1, label))
            is_open = False
    return spans


def write(spans: Iterable[Span], length: int, scheme: str = "iob2") -> list[str]:
    """Return the tags of spans that don't overlap, one for each of `length` words."""
    tags = [OUTSIDE] * length
    first, inner, last, single = tuple(_LETTERS[scheme])
    before: Span = (-1, -1, "")
    for span in sorted(spans):
        start, end, label = span
        letters = [single] if end - start == 1 else [first, *inner * (end - start - 2), last]
        if scheme == "iob1" and before[1:] == (start, label):
            letters[0] = "B"
        tags[start:end] = [label if scheme == IO else f"{letter}-{label}" for letter in letters]
        before = span
    return tags


def faults(tags: Sequence[str], scheme: str) -> list[int]:
    """Return the places whose tags the scheme wouldn't write there."""
    written = write(spans_of(tags, scheme), len(tags), scheme)
    return [place for place, (given, right) in enumerate(zip(tags, written, strict=True)) if given != right]


def is_entity_tags(tags: Sequence[str]) -> bool:
    """Whether these are the tags of a model that finds spans: O first, then B- and I- of each label."""
    return tags[:1] == [OUTSIDE] and all(tag.startswith(("B-", "I-")) for tag in tags[1:])


def label_of(tag: str, scheme: str) -> str | None:
    """Return what a tag says, without its prefix: "" for O, None where the scheme has no such tag."""
    letter, label = _parts(tag, scheme)
    return label if letter else "" if tag == OUTSIDE else None


def _parts(tag: str, scheme: str) -> tuple[str, str]:
    if tag == OUTSIDE:
        return "", ""
    if scheme == IO:
        return "I", tag.removeprefix("I-")
    match = _TAG.fullmatch(tag)
    return (match[1], match[2]) if match else ("", "")
