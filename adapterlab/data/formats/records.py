"""JSON (a list of objects, or SQuAD's nested articles), JSON lines, and plain text (a row a line)."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from adapterlab.data.formats.parsed import Columns, Parsed, some, whole
from adapterlab.data.formats.squad import flatten, is_squad
from adapterlab.errors import DataError


def parse_record(line: str) -> dict[str, Any]:
    """Read one line of JSON lines.

    Raises:
        ValueError: it holds no object; the message says what instead.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} where an object {{…}} is needed")
    return {name: whole(value) for name, value in record.items()}


def parse_jsonl(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read an object a line; blank lines are skipped."""
    records, places, broken, notes = [], array("q"), array("q"), []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(parse_record(line))
        except ValueError as error:
            if not drop_ragged:
                raise DataError(f"'{path}', line {number}: {error}") from error
            broken.append(number)
        else:
            places.append(number)
    if broken:
        notes.append(f"{path.name}: {len(broken):,} lines that hold no JSON object dropped (lines {some(broken)}).")
    return Parsed(_by_column(records), places, notes=notes)


def parse_json(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read a list of objects, SQuAD's articles, or an object a line under the wrong ending."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return parse_jsonl(text, path, drop_ragged)
        raise DataError(f"'{path}': no JSON: {error}") from error
    if is_squad(content):
        records = flatten(content, path)
        return Parsed(_by_column(records), range(1, len(records) + 1), unit="question")
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"'{path}' must hold a list of objects, [{{…}}, {{…}}], or an object a line")
    return Parsed(_by_column(content), range(1, len(content) + 1), unit="row")


def parse_txt(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read a text a line; the column is `text`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return Parsed({"text": lines}, range(1, len(lines) + 1))


def _by_column(records: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [whole(record.get(name)) for record in records] for name in names}
