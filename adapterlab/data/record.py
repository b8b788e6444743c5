"""Records of splits: which rows of which files each has, so that it can be rebuilt, and shown to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterlab.data.columns import Rows
from adapterlab.errors import DataError


def record_of(splits: Mapping[str, Rows], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `splits.json` holds: the settings, and for each split its rows by file and line, and their digest."""
    return {
        "version": 1,
        **settings,
        "splits": {
            name: {"rows": len(rows), "sha256": _digest(rows), "files": rows.origin.record(rows.numbers)}
            for name, rows in splits.items()
        },
    }


def compare(path: Path, now: Mapping[str, Any]) -> None:
    """Hold the splits made now against those recorded in a file.

    Raises:
        DataError: the file is no record, or splits differ; the message names the splits and the files that changed.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["splits"]
        before = {name: split["sha256"] for name, split in saved.items()}
        files = {(file["file"], file["sha256"]) for split in saved.values() for file in split["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is no record of splits: {type(error).__name__}: {error}") from error
    after = {name: split["sha256"] for name, split in now["splits"].items()}
    differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not differ:
        return
    known = {file for file, _ in files}
    there = {(file["file"], file["sha256"]) for split in now["splits"].values() for file in split["files"]}
    changed = sorted({f"'{name}' {'changed' if name in known else 'is new'}" for name, _ in there - files})
    changed += sorted(f"'{name}' is gone" for name in known - {name for name, _ in there})
    why = ", ".join(changed) or "the files are the same, so the recipe's data section or run.seed isn't"
    raise DataError(
        f"the rows of {', '.join(differ)} are not those that '{path}' records: {why}. Put things back as they were, or "
        "train anew: --replace, or another run.dir."
    )


def _digest(rows: Rows) -> str:
    """Return a SHA-256 of the rows' values, in order."""
    digest = hashlib.sha256()
    for row in rows.each():
        digest.update(json.dumps(row, sort_keys=True, default=str, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
