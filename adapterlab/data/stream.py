"""Streams: the rows of files larger than memory, in order or shuffled, with a stop and an exact resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from adapterlab.addresses import HubId, resolve
from adapterlab.data.reading import STREAMED, FileReader, Found
from adapterlab.data.sources import files_of
from adapterlab.errors import DataError, did_you_mean


class Stream:
    """Rows of csv, tsv, jsonl, txt and parquet files, plain or packed, one after the other as dicts.

    Iterating goes on from where the stream stands, to the end of its files, and stands at the beginning again then;
    `epoch` counts the passes. Iterate in one place at a time. A txt gives every line as `text`, blank ones too.

    Shuffled, rows are taken in blocks of `shuffle` and each block is put out in an order of its own, and the files
    too, anew in each pass. So a resume is exact: it reads the block again.

    Args:
        addresses: paths, globs, folders or package:NAME/PATH.
        encoding: of text files; None detects each one's from its head.
        bad_rows: "refuse" raises on a row that can't be parsed, "drop" leaves it out and counts it in `dropped`.
        shuffle: rows in the buffer; 0 keeps the files' order.
        seed: of the shuffling.

    Attributes:
        columns: the names in the first row of the first file.
        place: the file and line of the row given last, for messages.
        notes: what was found about the files.
        dropped: bad rows left out so far.
        epoch: passes finished.

    Raises:
        DataError: a file is missing, empty, of another kind, or its first row can't be read.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        encoding: str | None = None,
        bad_rows: str = "refuse",
        *,
        shuffle: int = 0,
        seed: int = 0,
    ) -> None:
        if bad_rows not in ("refuse", "drop"):
            raise DataError(f"bad_rows must be refuse or drop, got '{bad_rows}'.{did_you_mean(bad_rows, ['refuse'])}")
        self.shuffle, self.seed = shuffle, seed
        self.notes: list[str] = []
        self._files: list[FileReader] = []
        for address in [addresses] if isinstance(addresses, str) else addresses:
            found = resolve(address, "data")
            if isinstance(found, HubId):
                raise DataError(f"'{address}' can't be streamed; download its files and give their folder")
            paths, notes = files_of(found, STREAMED)
            self.notes += notes
            self._files += [FileReader(path, encoding, drop=bad_rows == "drop") for path in paths]
        if not self._files:
            raise DataError("no data address given; give a file, a folder, a glob or package:NAME/PATH")
        self._check_columns()
        self.notes += [note for file in self._files for note in file.notes]
        self.columns = self._files[0].columns
        self._stamps = [file.stamp() for file in self._files]
        self.place, self.epoch, self.dropped = "", 0, 0
        self._turn = self._read = self._offset = 0  # where the block begins: the file's turn, and the place in it
        self._block = self._taken = 0  # its number, and the rows of it that were given

    def __iter__(self) -> Iterator[dict[str, Any]]:
        files = self._order(len(self._files), self.epoch)
        rows = self._rows(files)
        while block := list(islice(rows, max(self.shuffle, 1))):
            order = self._order(len(block), self.epoch, self._block)
            for number in order[self._taken :]:
                self._taken += 1
                turn, found = block[number]
                if found.row is None:
                    self.dropped += 1
                    continue
                file = self._files[files[turn]]
                self.place = f"{file.path.name} {file.unit} {found.line}"
                yield found.row
            turn, last = block[-1]
            self._turn, self._read, self._offset = turn, last.read, last.offset
            self._taken, self._block = 0, self._block + 1
        self._turn = self._read = self._offset = self._block = self._taken = 0
        self.epoch += 1

    @property
    def is_plain(self) -> bool:
        """Whether the files are plain text, each line a row."""
        return all(file.kind == ".txt" for file in self._files)

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, after the row given last, as JSON can hold it."""
        return {
            "version": 1,
            "files": self._stamps,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "epoch": self.epoch,
            "dropped": self.dropped,
            "file": self._turn,
            "read": self._read,
            "offset": self._offset,
            "block": self._block,
            "taken": self._taken,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where a stream of the same files stood: the next row is the one that would have come next.

        Raises:
            DataError: a file was changed, added or taken away since, or the shuffling is another one.
        """
        lacking = [name for name in self.state() if name not in state]
        if lacking or state["version"] != 1:
            raise DataError(f"this is no state of a stream: it lacks {', '.join(lacking) or 'version 1'}")
        if changed := _changes(state["files"], self._stamps):
            raise DataError(f"the corpus isn't what it was at the stop, so the run can't go on from there: {changed}.")
        for name in ("shuffle", "seed"):
            if state[name] != getattr(self, name):
                raise DataError(f"the stream was stopped with {name}={state[name]} and can't go on with another one")
        self.epoch, self.dropped = int(state["epoch"]), int(state["dropped"])
        self._turn, self._read, self._offset = int(state["file"]), int(state["read"]), int(state["offset"])
        self._block, self._taken = int(state["block"]), int(state["taken"])

    def _rows(self, files: Sequence[int]) -> Iterator[tuple[int, Found]]:
        read, offset = self._read, self._offset
        for turn in range(self._turn, len(files)):
            for found in self._files[files[turn]].rows(read, offset):
                yield turn, found
            read = offset = 0

    def _order(self, count: int, *when: int) -> list[int]:
        if not self.shuffle:
            return list(range(count))
        order: list[int] = np.random.RandomState([self.seed, *when]).permutation(count).tolist()
        return order

    def _check_columns(self) -> None:
        first = self._files[0]
        for file in self._files:
            differ = sorted(set(first.columns) ^ set(file.columns))
            if differ and not {first.kind, file.kind} & {".jsonl", ".ndjson"}:  # whose rows may differ
                raise DataError(
                    f"'{first.path.name}' and '{file.path.name}' are read together but have different columns; "
                    f"only one of them has: {', '.join(differ)}."
                )


def _changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """Say which files differ, and how."""
    said = []
    names, old = {stamp["name"] for stamp in now}, {stamp["name"] for stamp in before}
    said += [f"'{name}' is gone" for name in sorted(old - names)]
    said += [f"'{name}' is new" for name in sorted(names - old)]
    for was, is_ in zip(before, now, strict=False):
        if said or was == is_:
            continue
        what = [key for key in ("size", "sha256_of_pieces", "mtime_ns") if was[key] != is_[key]]
        if what == ["mtime_ns"]:
            seconds = was["mtime_ns"] / 1e9
            said.append(
                f"'{is_['name']}' was written since (its size and samples of it are the same; if it was only copied, "
                f"set its time back: touch -d @{seconds:.9f})"
            )
        else:
            said.append(f"'{is_['name']}' was changed")
    if not said and len(before) != len(now):
        said.append(f"there were {len(before)} files and are {len(now)}")
    return ", ".join(said)
