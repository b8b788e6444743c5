"""Files read row by row, from any place in them on; memory holds a row (of Parquet, a thousand) and no more."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adapterlab.data.encodings import check_encoding, detect, undecodable
from adapterlab.data.formats import check_kind, kind_of, named_classes
from adapterlab.data.formats.delimited import (
    about_delimiter,
    column_names,
    delimiter_of,
    misfit,
    quoting_of_tsv,
    read_rows,
    remedy,
)
from adapterlab.data.formats.packed import FAILURES, open_unpacked
from adapterlab.data.formats.records import parse_record
from adapterlab.errors import DataError

STREAMED = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".parquet")
_HEAD = 2**20  # bytes that tell a file's encoding
_LONGEST = 2**26  # bytes in a line; more is no text
_BATCH = 1000  # rows of Parquet at once
_SAMPLES, _SAMPLE = 16, 4096  # pieces of a file, and their bytes, that tell whether it is the same


class Found(NamedTuple):
    """A row, the line (or row) it begins on, and where to go on after it. A bad row that was left out is None."""

    row: dict[str, Any] | None
    line: int
    read: int  # lines (or rows) of the file up to here
    offset: int  # bytes, unpacked, up to here


class FileReader:
    """Reads one file's rows in order.

    Args:
        path: the file.
        encoding: None detects it from the first MiB; bytes further on that aren't in it are an error.
        drop: leave rows out that can't be parsed, instead of raising.

    Raises:
        DataError: of a kind that can't be read row by row, empty, or no text.
    """

    def __init__(self, path: Path, encoding: str | None, *, drop: bool) -> None:
        self.path, self.drop = path, drop
        self.kind = check_kind(path, STREAMED)
        self.unit = "row" if self.kind == ".parquet" else "line"
        self.notes: list[str] = []
        self._quoting: int | None = None
        self.encoding = "" if self.kind == ".parquet" else self._find_encoding(encoding)
        first = next((found.row for found in self.rows() if found.row is not None), None)
        if first is None:
            raise DataError(f"'{path}' holds no rows")
        self.columns = list(first)

    def rows(self, read: int = 0, offset: int = 0) -> Iterator[Found]:
        """Yield the rows after a place, which an earlier row gave; from the beginning on where none is given.

        Raises:
            DataError: a row can't be parsed, and such rows aren't dropped; or the file breaks off.
        """
        if self.kind == ".parquet":
            yield from self._parquet(read)
            return
        lines = _Lines(self.path, self.encoding)
        try:
            if self.kind in {".csv", ".tsv"}:
                yield from self._delimited(lines, read, offset)
            else:
                lines.jump(read, offset)
                for line in lines:
                    yield from self._plain(line, lines)
        finally:
            lines.file.close()

    def stamp(self) -> dict[str, Any]:
        """Return what tells this file from a changed one: name, size, time of change, digest of pieces of it."""
        status = self.path.stat()
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for piece in range(_SAMPLES):
                file.seek(max(status.st_size - _SAMPLE, 0) * piece // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
        return {
            "name": self.path.name,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256_of_pieces": digest.hexdigest(),
        }

    def _find_encoding(self, encoding: str | None) -> str:
        with open_unpacked(self.path) as file:
            try:
                head = file.read(_HEAD)
            except FAILURES as error:
                raise DataError(f"'{self.path}' can't be read: {error}") from error
        if not head.strip():
            raise DataError(f"'{self.path}' is empty")
        if encoding is None:
            # a letter of several bytes may be cut in two at the head's end
            told = head if len(head) < _HEAD else head[: head.rfind(b"\n") + 1] or head[:-4]
            encoding, self.notes = detect(told, self.path)
        else:
            encoding = check_encoding(encoding)
        if encoding != "utf-8-sig" and "\n".encode(encoding) != b"\n":
            raise DataError(
                f"'{self.path}' is {encoding}, whose line ends take several bytes: it can't be read line by line. "
                f"Make it UTF-8 once: iconv -f {encoding} -t utf-8"
            )
        return encoding

    def _plain(self, line: str, lines: _Lines) -> Iterator[Found]:
        row: dict[str, Any] | None
        if self.kind == ".txt":
            row = {"text": line.removesuffix("\n").removesuffix("\r")}
        elif not line.strip():
            return
        else:
            try:
                row = parse_record(line)
            except ValueError as error:
                if not self.drop:
                    raise DataError(f"'{self.path}', line {lines.read}: {error}") from error
                row = None
        yield Found(row, lines.read, lines.read, lines.offset)

    def _delimited(self, lines: _Lines, read: int, offset: int) -> Iterator[Found]:
        first = next(iter(lines), "")
        delimiter = delimiter_of(first) if self.kind == ".csv" else "\t"
        if self._quoting is None:
            is_csv = self.kind == ".csv"
            self._quoting = csv.QUOTE_MINIMAL if is_csv else quoting_of_tsv(self._text, self.path)
            self.notes += about_delimiter(self.path, delimiter) if is_csv else []
        lines.jump(0, 0)
        longest = _LONGEST  # an open quote would take in all the rest
        _, header = next(read_rows(lines, self.path, delimiter, self._quoting, longest=longest), (1, []))
        names = column_names(header, self.path)
        if offset:
            lines.jump(read, offset)
        rows = read_rows(lines, self.path, delimiter, self._quoting, before=lines.read, longest=longest)
        for line, row in rows:
            wrong = misfit(row, len(names))
            if wrong and not self.drop:
                raise DataError(f"'{self.path}': line {line} {wrong}. {remedy(delimiter)}")
            values = None if wrong else dict(zip(names, row, strict=True))
            yield Found(values, line, lines.read, lines.offset)

    def _text(self) -> Iterator[str]:
        lines = _Lines(self.path, self.encoding)
        with lines.file:
            yield from lines

    def _parquet(self, read: int) -> Iterator[Found]:
        import datasets
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        if kind_of(self.path)[1]:
            raise DataError(f"'{self.path}': Parquet is packed in itself, and read in pieces only as it is: unpack it")
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                number = 0
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if number + size <= read:
                        number += size
                        continue
                    for batch in file.iter_batches(_BATCH, row_groups=[group]):
                        columns = named_classes(datasets.Dataset(pyarrow.Table.from_batches([batch])))
                        for values in zip(*columns.values(), strict=True):
                            number += 1
                            if number > read:
                                yield Found(dict(zip(columns, values, strict=True)), number, number, 0)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"'{self.path}' is no readable Parquet file: {error}") from error


class _Lines:
    """A text file's lines, with their ends, counted."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.encoding = path, encoding
        self.file = open_unpacked(path)
        self.read = self.offset = 0

    def jump(self, read: int, offset: int) -> None:
        """Go to a place that was reached before."""
        if offset < self.offset:
            self.file.close()
            self.file = open_unpacked(self.path)
            self.offset = 0
        if self.file.seekable():
            self.file.seek(offset)
        else:
            while self.offset < offset and (piece := self.file.read(min(offset - self.offset, _HEAD))):
                self.offset += len(piece)
        self.read, self.offset = read, offset

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self.file.readline(_LONGEST + 1)
            except FAILURES as error:
                raise DataError(f"'{self.path}' can't be read after line {self.read:,}: {error}") from error
            if not line:
                return
            if len(line) > _LONGEST:
                raise DataError(f"'{self.path}', line {self.read + 1:,}: more than {_LONGEST:,} bytes without an end")
            encoding = "utf-8" if self.offset and self.encoding == "utf-8-sig" else self.encoding
            self.read += 1
            self.offset += len(line)
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                raise undecodable(self.path, self.read, self.encoding) from error
