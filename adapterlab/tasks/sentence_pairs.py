"""Documents to pairs of segments: two that follow each other, and beside them two that don't."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adapterlab.errors import ConfigError
from adapterlab.tasks.packing import Block, Pieces

Sentences = list[list[list[int]]]  # of each its tokens and their words; lists, since JSON has nothing else
Frame = tuple[Sequence[int], Sequence[int], Sequence[int]]  # before the first segment, between the two, behind both

_CLOSING = "\"'\u201d\u2019\u00bb)\\]\u300d\u300f\uff09"
_END = re.compile(rf"[.!?\u2026]+[{_CLOSING}]*\s+|[\u3002\uff01\uff1f]+[{_CLOSING}]*\s*")
_KEPT = 64  # segments of the documents before, which wrong ones are drawn from
_LEAST = 8  # tokens of two segments


def split_sentences(text: str) -> list[str]:
    """Part a text: at each line's end; behind . ! ? with a blank, if no small letter follows; behind Chinese ones."""
    found = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            if not line[end.end() : end.end() + 1].islower():
                found.append(line[start : end.end()])
                start = end.end()
        found.append(line[start:])
    return [sentence.strip() for sentence in found if sentence.strip()]


def join_sentences(sentences: Sequence[Pieces]) -> Pieces:
    """Make a document of its sentences; where they end is kept."""
    ids: list[int] = []
    words: list[int] = []
    ends: list[int] = []
    for sentence in sentences:
        base = max(words, default=-1) + 1
        ids += sentence.ids
        words += [word + base if word >= 0 else -1 for word in sentence.words]
        ends.append(len(ids))
    return Pieces(ids, words, ends)


@dataclass
class Pair(Block):
    """A segment and the one behind it. `document` is 0 in the first, 1 in the second.

    Attributes:
        wrong: the pair that it may be taken for.
    """

    wrong: Block | None = None


class Pairer:
    """Makes pairs as `Packer` makes blocks, and can be stopped, kept and gone on with like it.

    Whole sentences are gathered until a pair is full, and parted at one of their borders, which is drawn. A pair's
    wrong one is, for "order", the same two segments the other way round; for "next", the first one and about as many
    tokens, whole sentences too, of another document: one of those before.

    Args:
        kind: "next" or "order".
        size: tokens in a pair.
        frame: special tokens before, between and behind the segments.
        seed: of the draws.

    Raises:
        ConfigError: there is no room for two segments.
    """

    def __init__(self, kind: Literal["next", "order"], size: int, frame: Frame, seed: int = 0) -> None:
        self.kind, self.frame, self.seed = kind, frame, seed
        self.room = size - sum(map(len, frame))
        if self.room < _LEAST:
            raise ConfigError(f"data.max_length={size}: two segments need {size - self.room + _LEAST} at least.")
        self._read = self._short = self._made = 0  # documents; those of one sentence; pairs
        self._pool: list[list[Any]] = []  # a segment of a document before, and which it is
        self._waiting: list[Pieces] = []  # documents before which there was no other

    def take(self, document: Pieces) -> Iterator[Pair]:
        """Make pairs of one document; yield them."""
        draw, key = np.random.default_rng([self.seed, self._read]), _key(document)
        parts = list(self._parts(document))
        self._read += 1
        self._short += bool(parts) and len(parts[0]) < 2
        others = [part for owner, part in self._pool if owner != key]
        if self.kind == "next" and not others:
            self._waiting.append(document)
        else:
            yield from self._pairs(parts, others, draw)
        if self.kind == "next":
            for part in parts:
                if len(self._pool) < _KEPT:
                    self._pool.append([key, part])
                else:
                    self._pool[int(draw.integers(_KEPT))] = [key, part]

    def rest(self) -> Iterator[Pair]:
        """Yield the pairs of documents that waited for another one."""
        for number, document in enumerate(self._waiting):
            draw, key = np.random.default_rng([self.seed, self._read, number]), _key(document)
            if others := [part for owner, part in self._pool if owner != key]:
                yield from self._pairs(self._parts(document), others, draw)
        self._waiting = []

    def state(self) -> dict[str, Any]:
        """Return what goes on from here, as JSON can hold it."""
        return {"read": self._read, "short": self._short, "made": self._made, "pool": list(self._pool)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._read, self._short, self._made = (int(state[name]) for name in ("read", "short", "made"))
        self._pool = list(state["pool"])

    @property
    def remark(self) -> str:
        """What is to be said of the documents."""
        return f" {self._short:,} documents of one sentence give no pair." if self._short else ""

    @property
    def lack(self) -> str | None:
        """Why not one pair was made, if none was."""
        if self._made or not self._read:
            return None
        if self._short == self._read:
            return (
                f"no document has two sentences, and task.sentences={self.kind} parts documents between them. A "
                "sentence ends at a line's end, or behind . ! ? and a blank. Where each line is a sentence, part "
                "documents by blank lines (task.documents=blank_lines); or set task.sentences=none."
            )
        return (
            "there is one document only, and task.sentences=next takes wrong sentences from another. Part documents "
            "by blank lines (task.documents), or set task.sentences=order, which does with one."
        )

    def _pairs(self, parts: Any, others: Sequence[Sentences], draw: np.random.Generator) -> Iterator[Pair]:
        for part in parts:
            if len(part) < 2:
                continue
            cut = int(draw.integers(1, len(part)))
            first, second = part[:cut], part[cut:]
            pair = self._block(Pair(), first, second)
            if self.kind == "order":
                pair.wrong = self._block(Block(), second, first)
            else:
                other = _some(
                    others[int(draw.integers(len(others)))], _length(second), self.room - _length(first), draw
                )
                pair.wrong = self._block(Block(), first, other)
            self._made += 1
            yield pair

    def _parts(self, document: Pieces) -> Iterator[Sentences]:
        """Yield as many sentences in a row as fill a pair; two at least, unless the document has but one."""
        part: Sentences = []
        before: Sentences = []
        for sentence in self._sentences(document):
            if part and _length(part) + len(sentence[0]) > self.room:
                yield part
                before, part = part[-1:], []
            part.append(sentence)
        if part:
            yield before + part if len(part) == 1 else part

    def _sentences(self, document: Pieces) -> Iterator[list[list[int]]]:
        """Yield the sentences; what is longer than half a pair is cut."""
        start = 0
        for end in document.ends:
            for begin in range(start, end, self.room // 2):
                stop = min(end, begin + self.room // 2)
                yield [list(document.ids[begin:stop]), list(document.words[begin:stop])]
            start = end

    def _block(self, block: Any, first: Sentences, second: Sentences) -> Any:
        head, middle, tail = self.frame
        block.add(*_flat(first), (head, middle))
        block.add(*_flat(second), ((), tail))
        return block


class Halver(Pairer):
    """Parts texts that are to be answered for: in their middle, nothing is drawn. One of one sentence stays whole."""

    def take(self, document: Pieces) -> Iterator[Pair]:
        """Yield the pairs of one text."""
        for part in self._parts(document):
            if len(part) < 2:
                whole = Pair()
                whole.add(*_flat(part), (self.frame[0], self.frame[2]))
                yield whole
                continue
            cut = min(range(1, len(part)), key=lambda place: abs(_length(part[:place]) - _length(part[place:])))
            yield self._block(Pair(), part[:cut], part[cut:])


def _some(part: Sentences, wanted: int, room: int, draw: np.random.Generator) -> Sentences:
    """Return sentences of a segment, about as many tokens as are wanted, so that lengths don't tell what is wrong.

    They don't begin with the first one, if there are others: what stands behind something never does.
    """
    fitting = [place for place in range(1, len(part)) if _length(part[place:]) >= wanted] or [min(1, len(part) - 1)]
    start = fitting[int(draw.integers(len(fitting)))]
    ends = [end for end in range(start + 1, len(part) + 1) if _length(part[start:end]) <= room]
    if not ends:
        return [[column[:room] for column in part[start]]]
    return part[start : min(ends, key=lambda end: abs(_length(part[start:end]) - wanted))]


def _flat(sentences: Sentences) -> tuple[list[int], list[int]]:
    ids, words = ([value for sentence in sentences for value in sentence[column]] for column in (0, 1))
    return ids, words


def _length(sentences: Sentences) -> int:
    return sum(len(sentence[0]) for sentence in sentences)


def _key(document: Pieces) -> int:
    """Tell documents apart; equal texts are one."""
    return zlib.crc32(np.asarray(document.ids, dtype=np.int64).tobytes())
