"""What every row is made of: its goals, contenders that take turns, medians and ratios, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapterlab.environment import cpu_name
from adapterlab.errors import ConfigError, unknown_name


class NotHereError(Exception):
    """This machine can't measure the row (no bf16 instructions, no GPU): no failure, and older results are kept."""


@dataclass(frozen=True)
class Settings:
    """What the command line sets.

    Args:
        rounds: counted rounds of interleaved contenders.
        layers: of BERT-base's width, in the step rows.
        cache: folder for what a row fetches or builds once: data, models, a peer's environment.
    """

    rounds: int = 7
    layers: int = 12
    cache: Path = Path.home() / ".cache" / "adapterlab-benchmarks"


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio: `Goal("at most 1.10 x the floor", "ours / floor", most=1.10)`.

    Args:
        words: the goal as people say it.
        ratio: name of the ratio it bounds.
        most, least: the bounds; what is left out doesn't bound.
        job: the part that it is for; every part that has such a ratio if left out.
    """

    words: str
    ratio: str
    most: float | None = None
    least: float | None = None
    job: str | None = None

    def met(self, value: float) -> bool:
        """Whether a ratio keeps to the bounds; NaN doesn't."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most) and value == value


@dataclass(frozen=True)
class Part:
    """One job of a row: the median of each contender in one unit, and the ratios that matter.

    Args:
        job: what was done, where a row has several; "" if it is the row's title.
        medians: by contender; "floor" and "ours" have columns of their own in the table, the others share one.
        unit: of the medians, e.g. "ms", "s", "MB", "%".
        ratios: by name; `ratios_of(medians, "ours / floor")` makes those of two medians.
    """

    job: str
    medians: dict[str, float]
    unit: str
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a row found.

    Args:
        parts: one or several jobs.
        notes: sizes, how something was counted, what wasn't the same on both sides.
        versions: of what ran in other environments, by library.
        rounds: that counted, where they aren't those of the command line.
    """

    parts: list[Part]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    rounds: int | None = None

    def verdicts(self, goals: Iterable[Goal]) -> list[dict[str, Any]]:
        """Return for each goal, and each part that it is for, the value found and whether it is met.

        A goal whose ratio nobody measured has neither (None).
        """
        found = []
        for goal in goals:
            parts = [p for p in self.parts if goal.ratio in p.ratios and goal.job in (None, p.job)]
            values: list[tuple[str | None, float | None]] = [(p.job, p.ratios[goal.ratio]) for p in parts]
            for job, value in values or [(goal.job, None)]:
                met = None if value is None else goal.met(value)
                found.append({"job": job or "", "goal": goal.words, "ratio": goal.ratio, "value": value, "met": met})
        return found


@dataclass(frozen=True)
class Row:
    """A line of the table of goals.

    Args:
        number: as the table has it, e.g. "4b".
        title: the job in a few words.
        goals: what its ratios should be.
        measure: runs it; raises `NotHereError` where it can't be run on this machine.
        long: left out unless `--long` or its number is given.
    """

    number: str
    title: str
    goals: tuple[Goal, ...]
    measure: Callable[[Settings], Result]
    long: bool = False


def select(rows: Iterable[Row], numbers: Sequence[str] = (), long: bool = False) -> list[Row]:
    """Return the rows asked for by number; without numbers the short ones, and with `long` all.

    Raises:
        ConfigError: there is no row of that number, or there are two.
    """
    known: dict[str, Row] = {}
    for row in rows:
        if row.number in known:
            raise ConfigError(f"two rows are called '{row.number}': '{known[row.number].title}' and '{row.title}'.")
        known[row.number] = row
    wrong = [
        unknown_name("row", n, known, "`python -m benchmarks --list` shows them.") for n in numbers if n not in known
    ]
    if wrong:
        raise ConfigError(wrong)
    chosen = list(dict.fromkeys(numbers)) or [row.number for row in known.values() if long or not row.long]
    return [known[number] for number in sorted(chosen, key=in_order)]


def in_order(number: str) -> tuple[int, str]:
    """Return what sorts row numbers: 4, 4b, 5, 10."""
    digits = re.match(r"\d*", number)[0]
    return int(digits or 0), number[len(digits) :]


def interleaved(contenders: Mapping[str, Callable[[], float | None]], rounds: int) -> dict[str, list[float]]:
    """Run contenders in turns, one round uncounted and then `rounds` that count; return each one's figures.

    A contender that returns None is timed, in seconds. One that returns a number has measured itself: the part
    that counts, in whatever unit, or what another process took.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            begun = time.perf_counter()
            figure = contender()
            taken = time.perf_counter() - begun
            if number:
                figures[name].append(taken if figure is None else figure)
    return figures


def medians_of(figures: Mapping[str, Iterable[float]], scale: float = 1.0) -> dict[str, float]:
    """Return the median of each contender's figures, times `scale` (1000 makes seconds milliseconds)."""
    return {name: scale * statistics.median(values) for name, values in figures.items()}


def ratios_of(medians: Mapping[str, float], *names: str) -> dict[str, float]:
    """Return ratios of medians by names such as "ours / floor"."""
    pairs = {name: name.split(" / ") for name in names}
    return {name: medians[above] / medians[below] for name, (above, below) in pairs.items()}


def hot_spots(step: Callable[[], Any], most: int = 7) -> str:
    """Return which operators a step spends its time in, in per cent of the whole."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return ", ".join(f"{e.key} {100 * e.self_cpu_time_total / whole:.0f} %" for e in events[:most])


def machine() -> dict[str, Any]:
    """Return what figures depend on: processor, memory, instructions, GPU, versions."""
    import torch

    from adapterlab.speed.precision import cpu_has_bf16

    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": cpu_has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for library in ("transformers", "peft", "adapters"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return found
