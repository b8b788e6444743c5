"""What reading a file gives: columns, and the place of every row, so that an error can name the line to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Columns = dict[str, list[Any]]

_SHOWN = 5  # so many places at most in a message


@dataclass
class Parsed:
    """What one file held. `places` counts lines (or rows, see `unit`) from 1, one for each row."""

    columns: Columns
    places: Sequence[int]
    unit: str = "line"
    notes: list[str] = field(default_factory=list)
    digest: str = ""  # SHA-256 of the file as it lies there

    @property
    def size(self) -> int:
        return len(self.places)


def some(places: Sequence[int]) -> str:
    """Write places shortened: "4, 17, 18, 20, 21 and 3 more"."""
    more = f" and {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
    return ", ".join(map(str, places[:_SHOWN])) + more


def whole(value: Any) -> Any:
    """Replace half a surrogate pair (JSON of a text cut inside an emoji), which no tokenizer takes."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value
