"""CoNLL files: a word and its tag a line, a blank line between sentences."""

from __future__ import annotations

from array import array
from pathlib import Path

from adapterlab.data.formats.parsed import Parsed, some
from adapterlab.errors import DataError

_DOCUMENT = "-DOCSTART-"


def parse_conll(text: str, path: Path, drop_ragged: bool) -> Parsed:
    """Read sentences as two columns of lists, `tokens` (a line's first column) and `tags` (its last).

    Columns are separated by tabs if every line has one, else by blanks. `-DOCSTART-` lines and comments (`# …`) are
    skipped; a `#` that is a word, with a tag behind it as other words have, is one.

    Raises:
        DataError: lines differ in their number of columns; with `drop_ragged` their sentences are left out.
    """
    lines = [line.rstrip("\r") for line in text.split("\n")]
    filled = [line for line in lines if line.strip() and not line.startswith(("#", _DOCUMENT))]
    by_tab = bool(filled) and all("\t" in line for line in filled)

    def split(line: str) -> list[str]:
        # by blanks only: str.split() would part words at a no-break space too
        return line.rstrip("\t ").split("\t") if by_tab else [part for part in line.split(" ") if part.strip()]

    width = len(split(filled[0])) if filled else 0
    tags_seen = {split(line)[-1] for line in filled}
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    places, ragged, dropped = array("q"), array("q"), 0
    words: list[str] = []
    marks: list[str] = []
    begins, fits = 0, True
    for number, line in enumerate([*lines, ""], 1):
        parts = split(line)
        if line.startswith("#") and not (len(parts) == width and parts[-1] in tags_seen):
            continue
        if not line.strip() or line.startswith(_DOCUMENT):
            if words and fits:
                tokens.append(words)
                tags.append(marks)
                places.append(begins)
            elif not fits:
                dropped += 1
            words, marks, begins, fits = [], [], 0, True
            continue
        begins = begins or number
        if len(parts) != width or width < 2:
            ragged.append(number)
            fits = False
            continue
        words.append(parts[0])
        marks.append(parts[-1])
    if not ragged:
        return Parsed({"tokens": tokens, "tags": tags}, places)
    if width < 2 or not drop_ragged:
        raise DataError(_ragged(lines, ragged, split(lines[ragged[0] - 1]), width, by_tab, path))
    note = f"{path.name}: {dropped:,} sentences with ragged lines dropped (lines {some(ragged)})."
    return Parsed({"tokens": tokens, "tags": tags}, places, notes=[note])


def _ragged(lines: list[str], ragged: array[int], parts: list[str], width: int, by_tab: bool, path: Path) -> str:
    shown = lines[ragged[0] - 1].strip()[:40]
    if width < 2:
        return (
            f"'{path}', line {ragged[0]}: '{shown}' has one column; a line needs a word and, in its last column, "
            "a tag. Is it a plain text? Then name it .txt."
        )
    return (
        f"'{path}', line {ragged[0]}: '{shown}' has {len(parts)} column{'s' if len(parts) != 1 else ''} where the "
        f"first word's line has {width}, separated by {'tabs' if by_tab else 'blanks'} "
        f"(lines that don't fit: {some(ragged)}). Mend them, or set data.bad_rows=drop to leave their sentences out."
    )
