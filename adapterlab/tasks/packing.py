"""Documents to blocks of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_LEAST = 16  # a longer document's piece at the end of a block has so many tokens, or goes into the next block


@dataclass
class Pieces:
    """A document as token ids, and for each of them the number of its word (-1: of none)."""

    ids: Sequence[int]
    words: Sequence[int]
    ends: Sequence[int] = ()  # where its sentences end, if that matters


@dataclass
class Block:
    """Up to `size` tokens. `document` counts the documents in it."""

    input_ids: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], words: Sequence[int], framed: tuple[Sequence[int], Sequence[int]]) -> None:
        """Append a document's piece between its special tokens, its words numbered on."""
        head, tail = framed
        number = self.document[-1] + 1 if self.document else 0
        base = max(self.words, default=-1) + 1 - min((word for word in words if word >= 0), default=0)
        self.input_ids += [*head, *ids, *tail]
        self.words += [*[-1] * len(head), *(word + base if word >= 0 else -1 for word in words), *[-1] * len(tail)]
        self.document += [number] * (len(head) + len(ids) + len(tail))


class Packer:
    """Makes blocks of `size` tokens, full but for a few; a document that doesn't fit goes on in the next.

    Between two documents it can be stopped, kept and gone on with.

    Args:
        size: tokens in a block.
        head: special tokens before each piece of a document.
        tail: those after it.
    """

    remark = ""  # what is to be said of the documents
    lack: str | None = None  # why they gave no block

    def __init__(self, size: int, head: Sequence[int] = (), tail: Sequence[int] = ()) -> None:
        self.size, self.framed = size, (head, tail)
        self.block = Block()

    def take(self, document: Pieces) -> Iterator[Block]:
        """Pack one document; yield the blocks that it fills."""
        frame = len(self.framed[0]) + len(self.framed[1])
        done, count = 0, len(document.ids)
        while done < count:
            room = self.size - len(self.block.input_ids) - frame
            if room < min(count - done, _LEAST, self.size - frame):
                yield from self.rest()
                continue
            end = min(count, done + room)
            self.block.add(document.ids[done:end], document.words[done:end], self.framed)
            done = end
            if len(self.block.input_ids) == self.size:
                yield from self.rest()

    def rest(self) -> Iterator[Block]:
        """Yield the block that is begun, if one is, and begin anew."""
        if self.block.input_ids:
            yield self.block
            self.block = Block()

    def state(self) -> dict[str, Any]:
        """Return what is packed already of the next block, as JSON can hold it."""
        return asdict(self.block)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.block = Block(**state)
