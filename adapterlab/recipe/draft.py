"""A recipe on its way to be checked: its plain values, where each came from, and the overrides put on top."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterlab.errors import ConfigError, did_you_mean
from adapterlab.recipe import strict_yaml
from adapterlab.recipe.problems import dotted, show
from adapterlab.recipe.schema import Recipe

Problems = list[tuple[strict_yaml.Path, str]]


class RecipeNote(UserWarning):
    """Something about a recipe that is no error but that its author would want to know."""


@dataclass
class Draft:
    """A recipe not yet checked, and where each of its values came from."""

    raw: dict[str, Any]
    name: str | None = None  # the file as the user knows it
    stem: str | None = None
    lines: dict[strict_yaml.Path, int] = field(default_factory=dict)
    duplicates: Problems = field(default_factory=list)
    overridden: dict[strict_yaml.Path, str] = field(default_factory=dict)  # to the text that was given

    def word(self, problems: Problems) -> list[str]:
        """Put before each problem its place, and sort: the file's from top to bottom, then the overrides'."""
        ordered = sorted(problems, key=lambda problem: (self._overrides(problem[0]), self._line(problem[0]) or 0))
        return [f"{self._place(path)}: {sentence}" for path, sentence in ordered]

    def _place(self, path: strict_yaml.Path) -> str:
        if self._overrides(path):
            return f"override {dotted(path)}"
        line = self._line(path)
        where = f"{self.name}:{line}: " if line else f"{self.name}: " if self.name else ""
        return f"{where}{dotted(path)}" if path else (self.name or "recipe")

    def _overrides(self, path: strict_yaml.Path) -> bool:
        """Tell whether an override put there what stands at a path, or made it to have a place."""
        if any(path[: len(given)] == given for given in self.overridden):
            return True
        return path not in self.lines and any(given[: len(path)] == path for given in self.overridden if path)

    def _line(self, path: strict_yaml.Path) -> int | None:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section's values; none if it is missing or no section."""
        section = self.raw.get(name)
        return section if isinstance(section, dict) else {}


_OVERRIDE = re.compile(r"([^=\s]+?)\s*=(.*)\Z", re.DOTALL)


def override(draft: Draft, overrides: Sequence[str]) -> list[str]:
    """Put the overrides into the draft; return the problems of those that can't be put anywhere."""
    problems: list[str] = []
    old_method = draft.section("adapter").get("method")
    given_options: set[str] = set()
    for text in overrides:
        try:
            key, written, value = read_pair(text, "override", "optim.lr=1e-4")
        except ConfigError as error:
            problems += error.problems
            continue
        path = tuple(key.split("."))
        if len(path) == 1 and path[0] not in Recipe.model_fields:
            owners = [f"{name}.{path[0]}" for name, sub in Recipe.model_fields.items() if _has(sub.annotation, path[0])]
            fix = f" Write {' or '.join(owners)}." if owners else did_you_mean(path[0], Recipe.model_fields)
            problems.append(f"override {key}: unknown section.{fix} Sections: {', '.join(Recipe.model_fields)}.")
            continue
        parent: Any = draft.raw
        for part in path[:-1]:
            if parent.get(part) is None:
                parent[part] = {}
            parent = parent[part]
            if not isinstance(parent, dict):
                problems.append(f"override {key}: '{part}' is the value {show(parent)}, not a section.")
                break
        else:
            parent[path[-1]] = value
            draft.overridden[path] = written
            if path[0] == "adapter":
                given_options.update(path[1:2] or draft.section("adapter"))
    _switch_method(draft, old_method, given_options)
    return problems


def read_pair(text: str, what: str, example: str) -> tuple[str, str, Any]:
    """Read "key=value"; return the key, the value as written, and the value.

    Args:
        text: what was given.
        what: what to call it in a message.
        example: a right one.

    Raises:
        ConfigError: it isn't one, or the value is broken YAML.
    """
    match = _OVERRIDE.match(text)
    if match is None:
        raise ConfigError(f"{what} '{text}': write it as key=value, for example {example}.")
    key, written = match[1], match[2].strip()
    try:
        return key, written, _value(written)
    except ConfigError as error:
        raise ConfigError([f"{what} {key}: {problem.partition(': ')[2]}" for problem in error.problems]) from error


def _value(written: str) -> Any:
    """Read an override's value: quoted text, [lists] and {sections} as in YAML, all else as one scalar."""
    if written[:1] in ("[", "{", '"', "'"):
        document = strict_yaml.parse(written)
        if document.duplicates:
            raise ConfigError([f"line 1: {dotted(path)} {why}" for path, why in document.duplicates])
        return document.value
    return strict_yaml.scalar(written)


def _has(annotation: Any, key: str) -> bool:
    return key in getattr(annotation, "model_fields", {})


def _switch_method(draft: Draft, old: Any, keep: set[str]) -> None:
    """Where an override names another method, leave out the options that were meant for the method before."""
    section = draft.section("adapter")
    new = section.get("method")
    if not (isinstance(old, str) and isinstance(new, str)) or old == new or _same_method(old, new):
        return
    stale = [option for option in section if option not in keep and option != "method"]
    for option in stale:
        del section[option]
    if stale:
        warnings.warn(
            f"adapter.method={new} starts from that method's defaults: left out {', '.join(stale)}, "
            f"which the recipe gives for {old}; optim.lr stays as it is.",
            RecipeNote,
            stacklevel=4,
        )


def _same_method(one: str, other: str) -> bool:
    from adapterlab.adapters import METHODS

    return one in METHODS and other in METHODS and METHODS.canonical(one) == METHODS.canonical(other)
