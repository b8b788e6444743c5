"""What a sweep may try for a key: some values, or a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterlab.errors import ConfigError

_FAR = 10  # a range that spans so many times its low end is searched on a logarithmic scale


@dataclass(frozen=True)
class Choices:
    """Values, as they would stand behind `key=` on the command line."""

    values: tuple[str, ...]

    def suggest(self, trial: Any, key: str) -> str:
        """Have an Optuna trial pick one."""
        return str(trial.suggest_categorical(key, self.values))

    def parse(self, value: str) -> str:
        """Return what Optuna knows a setting by."""
        return value

    def examples(self) -> str:
        """Return values to show in a message."""
        return ",".join(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are."""

    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any, key: str) -> str:
        """Have an Optuna trial pick one."""
        log = self.low > 0 and self.high / self.low >= _FAR
        pick = trial.suggest_int if self.whole else trial.suggest_float
        return repr(pick(key, self.low, self.high, log=log))

    def parse(self, value: str) -> float:
        """Return what Optuna knows a setting by."""
        return int(value) if self.whole else float(value)

    def examples(self) -> str:
        """Return values to show in a message."""
        return f"{self.low},{self.high}"


def read_space(grid: Sequence[str]) -> dict[str, Choices | Range]:
    """Read "KEY=A,B,C" and "KEY=LOW..HIGH".

    Raises:
        ConfigError: with all that can't be read.
    """
    space: dict[str, Choices | Range] = {}
    problems = []
    for item in grid:
        key, equals, text = item.partition("=")
        if not (equals and key.strip() and text.strip()):
            problems.append(f"--grid {item}: write KEY=A,B,C or KEY=LOW..HIGH, e.g. optim.lr=1e-4,1e-3.")
        elif key in space:
            problems.append(f"--grid {item}: {key} is there twice; put all its values behind one.")
        elif ".." in text and "," not in text:
            low, _, high = (part.strip() for part in text.partition(".."))
            try:
                space[key] = Range(_number(low), _number(high))
            except ValueError:
                problems.append(f"--grid {item}: '{text}' is no range of numbers; write {key}=1e-4..1e-2.")
                continue
            if not _number(low) < _number(high):
                problems.append(f"--grid {item}: the range ends before it begins.")
        else:
            space[key] = Choices(tuple(part.strip() for part in _split(text)))
    if problems:
        raise ConfigError(problems)
    return space


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _split(text: str) -> list[str]:
    """Split at commas, but not inside brackets: adapter.target_modules=[query,value],all-linear."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
