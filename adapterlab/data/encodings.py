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


def decode(content: bytes, path: Path, encoding: str | None) -> tuple[str, list[str]]:
    """Turn bytes into text: the encoding given, else a byte order mark's, UTF-8, Windows-1252 or Latin-1."""
    if encoding is not None:
        try:
            return content.decode("utf-8-sig" if encoding.lower() in {"utf-8", "utf8"} else encoding), []
        except LookupError as error:
            near = did_you_mean(encoding, ["utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "shift_jis", "big5"])
            raise DataError(f"data.encoding: unknown encoding '{encoding}'.{near}") from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"'{path}' is not {encoding}: line {line} holds bytes that mean nothing in it. "
                "Set data.encoding to the right one, or leave it out and it is detected."
            ) from error
    for mark, name in _BOMS:
        if content.startswith(mark):
            return decode(content, path, name)
    if b"\x00" in content[:65536]:
        raise DataError(
            f"'{path}' holds NUL bytes: it is no text file, or UTF-16 (then save it as "
            "UTF-8, or set data.encoding=utf-16-le)"
        )
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    for name in ("cp1252", "latin-1"):
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        note = f"{path.name} is not UTF-8 (line {line}); read as {name}."
        return text, [f"{note} If texts look wrong, save it as UTF-8 or set data.encoding."]
    raise DataError(f"'{path}' can't be decoded; set data.encoding")  # not reached: Latin-1 knows all bytes
