"""File formats: bytes to columns, with the place of every row, so that an error can name the line to look at.

The parsers are strict where silence would cost rows (a quote that never closes, a row with a field too many)
and leave values alone: in a CSV everything is text, so that "NA" stays a text and "007" a label.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterlab.data.encodings import decode
from adapterlab.errors import DataError

Columns = dict[str, list[Any]]

_END = "\x00end of file\x00"


@dataclass
class Parsed:
    """What one file held. `places` counts lines (or rows, see `unit`) from 1, one for each row."""

    columns: Columns
    places: Sequence[int]
    unit: str = "line"
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.places)


def parse_file(path: Path, encoding: str | None = None, *, drop_ragged: bool = False) -> Parsed:
    """Read one file by its ending; `.gz` is unpacked.

    Args:
        path: the file.
        encoding: of a text file; None detects it.
        drop_ragged: leave out a CSV's or TSV's rows with too many or too few fields, instead of refusing the file.

    Raises:
        DataError: the file is empty, of an unknown kind, or not what its ending says.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    ending = (suffixes[:-1] if packed else suffixes)[-1:]
    kind = ending[0] if ending else ""
    if kind not in KNOWN:
        hint = " Save the sheet as CSV." if kind in {".xlsx", ".xls", ".ods"} else ""
        raise DataError(f"'{path}' ends in '{kind or path.name}'; known: {', '.join(KNOWN)} (and .gz).{hint}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if packed else content
    except (OSError, EOFError) as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    if not content.strip():
        raise DataError(f"'{path}' is empty")
    if kind == ".parquet":
        parsed = _parse_parquet(content, path)
    else:
        text, notes = decode(content, path, encoding)
        ragged = _WITH_FIELDS.get(kind)
        parsed = ragged(text, path, drop_ragged) if ragged else _PARSERS[kind](text, path)
        parsed.notes[:0] = notes
    if not parsed.size:
        raise DataError(f"'{path}' holds no rows" + (", only the header" if kind in {".csv", ".tsv"} else ""))
    return parsed


def _parse_csv(text: str, path: Path, drop_ragged: bool) -> Parsed:
    header = text[: text.find("\n") + 1] or text
    delimiter = next((mark for mark in ",;\t|" if mark in header), ",")
    parsed = _delimited(text, path, delimiter, csv.QUOTE_MINIMAL, drop_ragged)
    if delimiter != ",":
        name = "tabs" if delimiter == "\t" else f"'{delimiter}'"
        parsed.notes.append(f"{path.name}: the header's columns are separated by {name}, not ','; read as such.")
    return parsed


def _parse_tsv(text: str, path: Path, drop_ragged: bool) -> Parsed:
    # Some writers quote fields in a TSV; others (GLUE's) leave stray quotes in the texts, and to read those
    # as quoting would swallow rows. Where every line has the header's number of tabs, a line is a row.
    lines = [line for line in text.split("\n") if line.strip("\r")]
    raw = len({line.count("\t") for line in lines}) == 1
    if raw:
        try:
            quoted = _delimited(text, path, "\t", csv.QUOTE_MINIMAL, drop_ragged=False)
        except DataError:
            quoted = None
        if quoted is not None and quoted.size == len(lines) - 1:
            return quoted
    return _delimited(text, path, "\t", csv.QUOTE_NONE if raw else csv.QUOTE_MINIMAL, drop_ragged)


def _delimited(text: str, path: Path, delimiter: str, quoting: Any, drop_ragged: bool) -> Parsed:
    rows = _csv_rows(text, path, delimiter, quoting)
    _, names = next(rows, (1, []))
    names = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"'{path}' names a column twice in its header: {', '.join(twice)}")
    values: list[list[str]] = [[] for _ in names]
    places, ragged, first = array("q"), array("q"), ""
    for line, row in rows:
        while len(row) > len(names) and not row[-1]:  # a spreadsheet's trailing delimiters
            row.pop()
        if len(row) != len(names):
            first = first or f"line {line} has {len(row)} fields where the header names {len(names)}"
            ragged.append(line)
            continue
        places.append(line)
        for column, value in zip(values, row, strict=True):
            column.append(value)
    notes = []
    if ragged:
        lines = ", ".join(map(str, ragged[:5])) + (f" and {len(ragged) - 5} more" if len(ragged) > 5 else "")
        if not drop_ragged:
            separator = "a tab" if delimiter == "\t" else f"'{delimiter}'"
            raise DataError(
                f"'{path}': {first} (rows that don't fit: lines {lines}). Put texts that hold {separator} in "
                "double quotes, or set data.bad_rows=drop to leave such rows out."
            )
        notes.append(f"{path.name}: {len(ragged):,} rows with too many or too few fields dropped (lines {lines}).")
    return Parsed(dict(zip(names, values, strict=True)), places, notes=notes)


def _csv_rows(text: str, path: Path, delimiter: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line it begins on; blank lines are skipped."""

    def lines() -> Iterator[str]:
        yield from io.StringIO(text, newline="")
        yield _END  # comes out as a row of its own, unless a quote is still open

    limit = csv.field_size_limit(max(len(text) + len(_END), csv.field_size_limit()))
    try:
        reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting)
        begins = 1
        for row in reader:
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                raise DataError(
                    f"'{path}': a double quote opens in the row on line {begins} and never closes. "
                    'Close it, or write a quote inside a text as "".'
                )
            if row:
                yield begins, row
            begins = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _parse_jsonl(text: str, path: Path) -> Parsed:
    records, places = [], array("q")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{path}', line {number}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"'{path}', line {number}: a {type(record).__name__} where an object {{…}} is needed")
        records.append(record)
        places.append(number)
    return Parsed(_by_column(records), places)


def _parse_json(text: str, path: Path) -> Parsed:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _parse_jsonl(text, path)  # an object a line, under the wrong ending
        raise DataError(f"'{path}': no JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"'{path}' must hold a list of objects, [{{…}}, {{…}}], or an object a line")
    return Parsed(_by_column(content), range(1, len(content) + 1), unit="row")


def _by_column(records: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [_whole(record.get(name)) for record in records] for name in names}


def _whole(value: Any) -> Any:
    """Replace half a surrogate pair (JSON of a text cut inside an emoji), which no tokenizer takes."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _parse_txt(text: str, path: Path) -> Parsed:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return Parsed({"text": lines}, range(1, len(lines) + 1))


def _parse_parquet(content: bytes, path: Path) -> Parsed:
    import datasets
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException as error:
        raise DataError(f"'{path}' is no readable Parquet file: {error}") from error
    columns = named_classes(datasets.Dataset(table))
    return Parsed(columns, range(1, table.num_rows + 1), unit="row")


def named_classes(dataset: Any) -> Columns:
    """Return a `datasets.Dataset` as lists; class numbers become the class's names, -1 becomes None."""
    import datasets

    columns: Columns = dataset[:]
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.ClassLabel):
            values = columns[name]
            columns[name] = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return columns


_WITH_FIELDS: dict[str, Callable[[str, Path, bool], Parsed]] = {".csv": _parse_csv, ".tsv": _parse_tsv}
_PARSERS: dict[str, Callable[[str, Path], Parsed]] = {
    ".jsonl": _parse_jsonl,
    ".ndjson": _parse_jsonl,
    ".json": _parse_json,
    ".txt": _parse_txt,
}
KNOWN = (*_WITH_FIELDS, *_PARSERS, ".parquet")
