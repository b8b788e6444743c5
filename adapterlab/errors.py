"""The errors that users see. A message names what was given, what is allowed, the nearest match and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AdapterLabError(Exception):
    """Base of every error that adapterlab raises on purpose; the command line turns it into exit code 2."""


class ConfigError(AdapterLabError):
    """Options or a recipe are wrong. `problems` holds every problem found, not only the first.

    Args:
        problems: one message, or all of them.
        source: what was being read, e.g. the recipe's path; put before the problems.
    """

    def __init__(self, problems: str | Sequence[str], source: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        lines = self.problems if len(self.problems) == 1 else [f"- {problem}" for problem in self.problems]
        if source:
            count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
            lines = [f"{source}: {count}", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))


class DataError(AdapterLabError):
    """A data file is missing, unreadable, or its rows can't be used as the task needs them."""


class BackboneError(AdapterLabError):
    """A backbone can't be found, or has no module that the method can attach to."""


class AdapterError(AdapterLabError):
    """The model's adapters are not in the state that the call needs (unknown name, attached twice, ...)."""


class AdapterFolderError(AdapterLabError):
    """An adapter folder can't be read, or doesn't fit the model. The model is left as it was."""


class DeployedFolderError(AdapterLabError):
    """A folder for serving can't be written, or can't be read: damaged, incomplete, or of a newer format."""


class RunFolderError(AdapterLabError):
    """A run folder holds a run already, or holds none where one is needed."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest allowed name, or an empty string.

    >>> did_you_mean("lroa", ["lora", "prefix"])
    " Did you mean 'lora'?"
    """
    by_lower, wrong = {name.lower(): name for name in allowed}, str(given).lower()
    nearest = difflib.get_close_matches(wrong, list(by_lower), n=3, cutoff=0.6)
    # of names as near, the one with the same letters: 'lroa' is 'lora', not 'road'
    nearest.sort(key=lambda name: sorted(name) != sorted(wrong))
    return f" Did you mean '{by_lower[nearest[0]]}'?" if nearest else ""


def unknown_name(kind: str, given: str, allowed: Iterable[str], hint: str = "") -> str:
    """Word the message for a name that isn't known: what was given, the nearest match, what is allowed."""
    names = sorted(allowed)
    listing = ", ".join(names) if names else "none"
    return f"unknown {kind} '{given}'.{did_you_mean(given, names)} Known: {listing}.{' ' + hint if hint else ''}"
