"""Folders as data: all the files in one that are of the same kind, sorted by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapterlab.data.formats.packed import kind_of
from adapterlab.errors import DataError

_PAPERS = ("readme", "license", "licence", "notice", "citation", "changelog")  # beside data, not data
_HELD_OUT = ("test", "dev", "valid", "validation", "eval")
_SHOWN = 6  # so many names at most in a message


def files_in(folder: Path, known: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return a folder's data files, and a note on what was read and what skipped.

    Raises:
        DataError: it holds none, several kinds, or files that are named as different splits.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    readable = [
        path
        for path in entries
        if path.is_file() and kind_of(path)[0] in known and not path.name.lower().startswith(_PAPERS)
    ]
    skipped = [path.name + "/" * path.is_dir() for path in entries if path not in readable]
    if not readable:
        raise DataError(
            f"the folder '{folder}' holds no data file ({', '.join(known)}, or these packed). "
            f"It holds: {_some(skipped) or 'nothing'}"
        )
    kinds = sorted({kind_of(path)[0] for path in readable})
    if len(kinds) > 1:
        raise DataError(
            f"the folder '{folder}' holds files of several kinds ({_some([path.name for path in readable])}); "
            f"say which: {' or '.join(f'{folder}/*{kind}' for kind in kinds)}"
        )
    held_out = [path.name for path in readable if _first_word(path) in _HELD_OUT]
    if held_out and any(_first_word(path) == "train" for path in readable):
        raise DataError(
            f"the folder '{folder}' holds files to train on and files to measure on ({', '.join(held_out)}), which "
            "must not be read together. Name them one by one: data.train, data.eval, data.test."
        )
    count = f"{len(readable)} file{'s' if len(readable) > 1 else ''}"
    note = f"{folder.name}/: {count} read ({_some([path.name for path in readable])})"
    return readable, [f"{note}; skipped: {_some(skipped)}." if skipped else f"{note}."]


def _first_word(path: Path) -> str:
    name = path.name.lower()
    return name[: next((place for place, mark in enumerate(name) if not mark.isalpha()), len(name))]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
