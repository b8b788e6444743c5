"""File formats: bytes to columns, one file a format.

The parsers are strict where silence would cost rows (a quote that never closes, a row with a field too many)
and leave values alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from adapterlab.data.encodings import decode
from adapterlab.data.formats.conll import parse_conll
from adapterlab.data.formats.delimited import parse_csv, parse_tsv
from adapterlab.data.formats.packed import PACKED, kind_of, unpack
from adapterlab.data.formats.parquet import named_classes, parse_parquet
from adapterlab.data.formats.parsed import Columns, Parsed, some
from adapterlab.data.formats.records import parse_json, parse_jsonl, parse_txt
from adapterlab.errors import DataError

__all__ = ["KNOWN", "Columns", "Parsed", "check_kind", "kind_of", "named_classes", "parse_file", "some"]

_PARSERS: dict[str, Callable[[str, Path, bool], Parsed]] = {
    ".csv": parse_csv,
    ".tsv": parse_tsv,
    ".jsonl": parse_jsonl,
    ".ndjson": parse_jsonl,
    ".json": parse_json,
    ".txt": parse_txt,
    ".conll": parse_conll,
    ".bio": parse_conll,
    ".iob": parse_conll,
}
KNOWN = (*_PARSERS, ".parquet")


def parse_file(path: Path, encoding: str | None = None, *, drop_ragged: bool = False) -> Parsed:
    """Read one file by its ending; `.gz` and `.zst` are unpacked.

    Args:
        path: the file.
        encoding: of a text file; None detects it.
        drop_ragged: leave out rows that can't be parsed (a CSV's with too many or too few fields, a line that is no
            JSON, a sentence with ragged lines), instead of refusing the file.

    Raises:
        DataError: the file is empty, of an unknown kind, or not what its ending says.
    """
    kind = check_kind(path, KNOWN)
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    content = unpack(packed, path)
    if not content.strip():
        raise DataError(f"'{path}' is empty")
    if kind == ".parquet":
        parsed = parse_parquet(content, path)
    else:
        text, notes = decode(content, path, encoding)
        parsed = _PARSERS[kind](text, path, drop_ragged)
        parsed.notes[:0] = notes
    if not parsed.size:
        lost = "; " + " ".join(parsed.notes) if parsed.notes else ""
        raise DataError(f"'{path}' holds no rows" + (", only the header" if kind in {".csv", ".tsv"} else "") + lost)
    parsed.digest = hashlib.sha256(packed).hexdigest()
    return parsed


def check_kind(path: Path, known: tuple[str, ...]) -> str:
    """Return the format's ending.

    Raises:
        DataError: it isn't one of those known.
    """
    kind, _ = kind_of(path)
    if kind not in known:
        hint = " Save the sheet as CSV." if kind in {".xlsx", ".xls", ".ods"} else ""
        packings = " and ".join(PACKED)
        raise DataError(f"'{path}' ends in '{kind or path.name}'; known: {', '.join(known)} (and {packings}).{hint}")
    return kind
