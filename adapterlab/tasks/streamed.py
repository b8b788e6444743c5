"""Blocks of a streamed corpus, without end; where reading stood at each of them is known, so that it can go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import IterableDataset

from adapterlab.data.corpora import Corpus
from adapterlab.errors import DataError
from adapterlab.tasks.blocks import padded

if TYPE_CHECKING:
    from adapterlab.tasks.corpus import CorpusTask

_REMEMBERED = 8192  # blocks whose place is known: more than a loader reads ahead

State = dict[str, Any]


class Resumable(Protocol):
    """An endless source of encoded rows."""

    def walk(self) -> Iterator[tuple[dict[str, Any], State]]:
        """Yield rows, each with the state to restore for the next one to come next."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where such a state was."""


class _Remembering(IterableDataset[dict[str, Any]]):
    """Yields what its `walk` gives, and remembers the states.

    A loader reads ahead of training: so not the last state counts, but that of the last row that was trained on.
    """

    def __init__(self) -> None:
        self.given = 0
        self._states: deque[tuple[int, State]] = deque(maxlen=_REMEMBERED)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, state in self.walk():  # type: ignore[attr-defined]
            self.given += 1
            self._states.append((self.given, state))
            yield row

    def state_after(self, rows: int) -> State:
        """Return the state behind the first so many rows, counted over all sessions."""
        return {"rows": rows, **next(state for count, state in self._states if count == rows)}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin behind the rows that such a state counts.

        Raises:
            DataError: the corpus isn't what it was.
        """
        self.given = int(state["rows"])
        self.restore(state)  # type: ignore[attr-defined]


class Blocks(_Remembering):
    """A corpus in blocks of one size, padded to it."""

    def __init__(self, corpus: Corpus, task: CorpusTask, tokenizer: Any, size: int) -> None:
        super().__init__()
        self.corpus, self.task, self.tokenizer, self.size = corpus, task, tokenizer, size
        self._packer = task.packer(tokenizer, size, "train")
        self._done = 0  # blocks already given of the next document

    def walk(self) -> Iterator[tuple[dict[str, Any], State]]:
        """Yield rows, each with its state: where the last document began, what was packed then, its blocks so far."""
        while True:
            any_text = False
            for before, text in self.corpus.documents():
                any_text = True
                begun, first = self._packer.state(), self._done
                self._done = 0
                document = self.task.pieces([text], self.tokenizer)[0]
                blocks = list(self._packer.take(document))[first:]
                rows = self.task.columns_of(blocks, self.tokenizer, "train")
                for number, row in enumerate(rows, start=first + 1):
                    yield (
                        padded(row, self.size, self.tokenizer.pad_token_id),
                        {"corpus": before, "block": begun, "done": number},
                    )
            if not any_text:
                raise DataError("the corpus is empty: a whole pass over it gave no document.")
            if self._packer.lack:
                raise DataError(f"the corpus: {self._packer.lack}")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read the last document again, and leave out the blocks that were given."""
        self.corpus.restore(state["corpus"])
        self._packer.restore(state["block"])
        self._done = int(state["done"])


class Mixed(_Remembering):
    """Two sources in one: of every stretch of rows the same share is the second's."""

    def __init__(self, main: Resumable, other: Resumable, share: float) -> None:
        super().__init__()
        self.parts, self.share = (main, other), share
        self._restored: list[State | None] = [None, None]

    def walk(self) -> Iterator[tuple[dict[str, Any], State]]:
        """Yield rows with the states of both sources."""
        walks = [part.walk() for part in self.parts]
        states = list(self._restored)
        number = self.given
        while True:
            which = int((number + 1) * self.share) - int(number * self.share)
            number += 1
            row, states[which] = next(walks[which])
            yield row, {"parts": list(states)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put both sources where they were."""
        self._restored = list(state["parts"])
        for part, own in zip(self.parts, self._restored, strict=True):
            if own is not None:
                part.restore(own)
