"""Packed files: `.gz` and `.zst` of every format. Zstandard comes with Arrow, which `datasets` stands on."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from adapterlab.errors import DataError

PACKED = (".gz", ".zst")
FAILURES = (OSError, EOFError, zlib.error)  # what reading a packed file that is broken raises


def kind_of(path: Path) -> tuple[str, str]:
    """Return the format's ending and that of the packing, or "": `a.csv.gz` gives `.csv` and `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    return (suffixes[-1] if suffixes else ""), packing


def unpack(content: bytes, path: Path) -> bytes:
    """Return what a file's bytes hold once they are unpacked.

    Raises:
        DataError: they are cut off, or not what the ending says.
    """
    _, packing = kind_of(path)
    try:
        if packing == ".gz":
            return gzip.decompress(content)
        if packing == ".zst":
            import pyarrow  # type: ignore[import-untyped]

            return cast(bytes, pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd").read())
    except FAILURES as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    return content


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file for reading from its beginning, unpacked on the way; memory holds a buffer of it at most."""
    _, packing = kind_of(path)
    if packing == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packing == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")
