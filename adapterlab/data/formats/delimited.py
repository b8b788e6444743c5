"""CSV and TSV: everything is text, so that "NA" stays a text and "007" a label; no row is swallowed silently."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from adapterlab.data.formats.parsed import Parsed, some
from adapterlab.errors import DataError

_END = "\x00end of file\x00"
_LONGEST = 2**31 - 1  # characters in a field; the csv module's own limit is far below a long text


def parse_csv(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read comma-separated values, or what the header shows to stand in the commas' place."""
    delimiter = delimiter_of(text[: text.find("\n") + 1] or text)
    parsed = _parse(text, path, delimiter, csv.QUOTE_MINIMAL, drop_ragged)
    parsed.notes += about_delimiter(path, delimiter)
    return parsed


def parse_tsv(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read tab-separated values, with quotes where they are meant as such."""
    return _parse(text, path, "\t", quoting_of_tsv(lambda: io.StringIO(text, newline=""), path), drop_ragged)


def delimiter_of(header: str) -> str:
    """Return what separates the columns' names."""
    return next((mark for mark in ",;\t|" if mark in header), ",")


def about_delimiter(path: Path, delimiter: str) -> list[str]:
    """Say so where it isn't a comma."""
    if delimiter == ",":
        return []
    name = "tabs" if delimiter == "\t" else f"'{delimiter}'"
    return [f"{path.name}: the header's columns are separated by {name}, not ','; read as such."]


def quoting_of_tsv(lines: Callable[[], Iterable[str]], path: Path) -> int:
    """Find whether quotes in a TSV belong to its texts; `lines` is called for each look at the file.

    Some writers quote fields; others (GLUE's) leave stray quotes in the texts, and to read those as quoting would
    swallow rows. Where every line has the header's number of tabs, a line is a row.
    """
    filled = tabs = 0
    for line in lines():
        if line.strip("\r\n"):
            if filled and line.count("\t") != tabs:
                return csv.QUOTE_MINIMAL
            tabs = line.count("\t")
            filled += 1
    try:
        rows = 0
        for _, row in read_rows(lines(), path, "\t", csv.QUOTE_MINIMAL):
            rows += 1
            if len(row) != tabs + 1:
                return csv.QUOTE_NONE
    except DataError:
        return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL if rows == filled else csv.QUOTE_NONE


def read_rows(
    lines: Iterable[str], path: Path, delimiter: str, quoting: int, *, before: int = 0, longest: int = _LONGEST
) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line it begins on; blank lines are skipped.

    Args:
        lines: the file's lines, with their ends; no more are taken than the rows yielded have.
        path: for messages.
        delimiter: between the fields.
        quoting: one of the csv module's kinds.
        before: lines of the file that come before these.
        longest: characters that a field may have.

    Raises:
        DataError: a quote never closes, or a field is too long.
    """

    def ended() -> Iterator[str]:
        yield from lines
        yield _END  # comes out as a row of its own, unless a quote is still open

    reader = csv.reader(ended(), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    begins = before + 1
    while True:
        limit = csv.field_size_limit(longest)
        try:
            row = next(reader)
        except csv.Error as error:
            raise DataError(
                f"'{path}', the row that begins on line {begins}: {error}. Does a double quote there never close, "
                "or are the file's line ends old ones (a lone carriage return)?"
            ) from error
        finally:
            csv.field_size_limit(limit)
        if row == [_END]:
            return
        if row and row[-1].endswith(_END):
            raise DataError(
                f"'{path}': a double quote opens in the row on line {begins} and never closes. "
                'Close it, or write a quote inside a text as "".'
            )
        if row:
            yield begins, row
        begins = before + reader.line_num + 1


def column_names(header: list[str], path: Path) -> list[str]:
    """Return the columns' names.

    Raises:
        DataError: two are equal.
    """
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"'{path}' names a column twice in its header: {', '.join(twice)}")
    return names


def misfit(row: list[str], width: int) -> str | None:
    """Take a spreadsheet's trailing delimiters off a row, and say what is wrong with it, if anything still is."""
    while len(row) > width and not row[-1]:
        row.pop()
    return None if len(row) == width else f"has {len(row)} fields where the header names {width}"


def remedy(delimiter: str) -> str:
    """Say what to do about rows of a wrong width."""
    separator = "a tab" if delimiter == "\t" else f"'{delimiter}'"
    return f"Put texts that hold {separator} in double quotes, or set data.bad_rows=drop to leave such rows out."


def _parse(text: str, path: Path, delimiter: str, quoting: int, drop_ragged: bool) -> Parsed:
    rows = read_rows(io.StringIO(text, newline=""), path, delimiter, quoting, longest=max(len(text) + 64, 2**17))
    _, header = next(rows, (1, []))
    names = column_names(header, path)
    values: list[list[str]] = [[] for _ in names]
    places, ragged, first = array("q"), array("q"), ""
    for line, row in rows:
        if wrong := misfit(row, len(names)):
            first = first or f"line {line} {wrong}"
            ragged.append(line)
            continue
        places.append(line)
        for column, value in zip(values, row, strict=True):
            column.append(value)
    notes = []
    if ragged:
        if not drop_ragged:
            raise DataError(f"'{path}': {first} (rows that don't fit: lines {some(ragged)}). {remedy(delimiter)}")
        notes.append(
            f"{path.name}: {len(ragged):,} rows with too many or too few fields dropped (lines {some(ragged)})."
        )
    return Parsed(dict(zip(names, values, strict=True)), places, notes=notes)
