"""Origins: from which file and line a row came. Errors name it, and a run's record of its splits keeps it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_SHOWN = 5  # so many places at most in a message


@dataclass(frozen=True)
class File:
    """A file that was read: the line (or row, see `unit`) of each row in it, and the SHA-256 of its bytes."""

    name: str
    places: Sequence[int]
    unit: str = "line"
    digest: str = ""


class Origin:
    """Where the rows of a table came from.

    Args:
        address: as it was given, for messages.
        files: those read, in the rows' order.
    """

    def __init__(self, address: str, files: Sequence[File]) -> None:
        self.address = address
        self.files = list(files)
        self._starts = [0, *accumulate(len(file.places) for file in self.files)]

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, rows: Sequence[int]) -> str:
        """Say where rows (counted from 0) stand: "lines 4, 17 and 3 more", and in which file of several."""
        found: dict[str, list[str]] = {}
        for row in rows[:_SHOWN]:
            file, place = self._find(row)
            where = f"{file.name} {file.unit}" if len(self.files) > 1 else file.unit
            found.setdefault(where, []).append(str(place))
        said = ", ".join(
            f"{where}{'s' if len(places) > 1 else ''} {', '.join(places)}" for where, places in found.items()
        )
        return f"{said} and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else said

    def record(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return for each file the places of those rows that came from it, as JSON can hold them."""
        places: dict[int, list[int]] = {}
        for row in rows:
            number = bisect_right(self._starts, row) - 1
            places.setdefault(number, []).append(self.files[number].places[row - self._starts[number]])
        return [
            {"file": file.name, "sha256": file.digest, "unit": file.unit, "rows": _ranges(sorted(places[number]))}
            for number, file in enumerate(self.files)
            if number in places
        ]

    def _find(self, row: int) -> tuple[File, int]:
        number = bisect_right(self._starts, row) - 1
        file = self.files[number]
        return file, file.places[row - self._starts[number]]


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers shortly: "2-40,43"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
