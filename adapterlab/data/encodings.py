"""Encodings: bytes to text, detected where nobody says."""

from __future__ import annotations

import codecs
from pathlib import Path

from adapterlab.errors import DataError, did_you_mean

_BOMS = [  # UTF-32's begins with UTF-16's: the longer first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
# What is looked for: the encodings that texts have been kept in, one for each alphabet and system. Rarer ones are
# told from these by luck only; they want naming.
_CANDIDATES = [
    "cp1252", "gb18030", "big5", "cp932", "euc_jp", "cp949", "koi8_r", "cp1251", "cp1250", "cp1253", "cp1254",
    "cp1255", "cp1256",
]  # fmt: skip
_NAMES = {"cp932": "shift_jis (cp932)", "cp949": "euc-kr (cp949)", "koi8_r": "koi8-r"}
_STRAY = 0.1  # of the bytes: fewer than these that aren't ASCII are no text in another alphabet
_ENOUGH = 65536  # bytes of lines that aren't ASCII, to tell from


def decode(content: bytes, path: Path, encoding: str | None) -> tuple[str, list[str]]:
    """Turn bytes into text: the encoding given, else a byte order mark's, UTF-8, or the likeliest, with a note.

    Raises:
        DataError: the encoding isn't known, the bytes aren't in it, or they are no text.
    """
    if encoding is None:
        encoding, notes = detect(content, path)
    else:
        encoding, notes = check_encoding(encoding), []
    try:
        return content.decode(encoding), notes
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise undecodable(path, line, encoding) from error


def detect(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Return the encoding of a file's bytes, and a note if it was a guess.

    Raises:
        DataError: they are no text.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            return name, []
    if b"\x00" in content[:65536]:
        raise DataError(
            f"'{path}' holds NUL bytes: it is no text file, or UTF-16 (then save it as "
            "UTF-8, or set data.encoding=utf-16-le)"
        )
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = _likeliest(content)
        note = f"{path.name} is not UTF-8 (line {line}); read as {_NAMES.get(found, found)}."
        return found, [f"{note} If texts look wrong, save it as UTF-8 or set data.encoding."]
    return "utf-8-sig", []


def check_encoding(encoding: str) -> str:
    """Return the name of an encoding; UTF-8's is that of the kind that skips a byte order mark.

    Raises:
        DataError: Python has no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        near = did_you_mean(encoding, ["utf-8", "utf-16", "latin-1", "shift_jis", "euc-kr", *_CANDIDATES])
        raise DataError(f"data.encoding: unknown encoding '{encoding}'.{near}") from error
    return "utf-8-sig" if name == "utf-8" else name


def undecodable(path: Path, line: int, encoding: str) -> DataError:
    """Word the error for bytes that aren't in their encoding."""
    return DataError(
        f"'{path}' is not {encoding.removesuffix('-sig')}: line {line} holds bytes that mean nothing in it. "
        "Set data.encoding to the right one, or leave it out and it is detected."
    )


def _likeliest(content: bytes) -> str:
    from charset_normalizer import from_bytes

    telling, size = [], 0
    for line in content.split(b"\n"):  # in all these encodings, a byte 10 is a line's end
        if not line.isascii():
            telling.append(line)
            size += len(line)
            if size > _ENOUGH:
                break
    sample = b"\n".join(telling)
    found = from_bytes(sample, cp_isolation=_CANDIDATES)
    best = found.best()
    likely = [name for name in ("cp932", "euc_jp") if _has_kana(sample, name)]
    if best is not None and not likely:
        # Of encodings that give as good a text, Western Europe's: it is the commonest by far.
        equal = [one for one in found if (one.chaos, one.coherence) == (best.chaos, best.coherence)]
        names = {name for one in equal for name in one.could_be_from_charset}
        likely = ["cp1252"] if "cp1252" in names else [best.encoding]
    if sum(byte > 127 for byte in sample) < _STRAY * len(sample):
        likely[:0] = ["cp1252", "latin-1"]  # no other alphabet, but quotes, dashes, names, or what was mangled once
    for name in [*likely, *(one.encoding for one in found), "cp1252"]:
        try:
            content.decode(name)
        except UnicodeDecodeError:
            continue
        return name
    return "latin-1"  # knows all bytes


def _has_kana(sample: bytes, encoding: str) -> bool:
    """Whether bytes read as Japanese: much of it is kana, which other texts read so never give, as rare Hangul may."""
    try:
        text = [letter for letter in sample.decode(encoding) if not letter.isascii()]
    except UnicodeDecodeError:
        return False
    return sum("\u3040" <= letter <= "\u30ff" for letter in text) > len(text) / 5
