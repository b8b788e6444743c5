"""Names of modules: dotted name endings, and globs. No regular expressions: a user's, or a file's, could run away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 300  # characters of a pattern; no module's path is that long
_ANY = None  # in a split pattern: any number of items, here of parts or of characters
_REGEX = frozenset("()|\\^$+{}")
_HELP = (
    "Give a list of name endings, ['q_proj', 'v_proj'], or a glob: '*' and '?' stand for characters inside one "
    "dotted part, '[qv]' for one of these, '**' for any number of parts, as in 'layer.*.attention.self.[qv]*'."
)


def check_pattern(pattern: str) -> str:
    """Return a name ending or glob if it is one.

    Raises:
        ValueError: it's a regular expression, or no name.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"a pattern of {len(pattern)} characters, and {LONGEST} are allowed. {_HELP}")
    if _REGEX & set(pattern):
        raise ValueError(f"'{pattern}' is a regular expression, which could run away. {_HELP}")
    if not all(pattern.split(".")):
        raise ValueError(f"'{pattern}' has an empty part between its dots. {_HELP}")
    if is_glob(pattern) and not pattern.isascii():
        raise ValueError(f"'{pattern}': a glob is of ASCII characters. {_HELP}")
    for part in pattern.split("."):
        _characters(part)
    return pattern


def check_patterns(value: Any) -> Any:
    """Check each pattern of a list, or each key of a mapping; leave other kinds of values to pydantic."""
    for pattern in value if isinstance(value, list | dict) else ():
        if isinstance(pattern, str):
            check_pattern(pattern)
    return value


def is_glob(pattern: str) -> bool:
    """Whether a pattern is more than a name ending."""
    return any(character in pattern for character in "*?[")


def matches(pattern: str, path: str) -> bool:
    """Whether the last parts of a dotted path are what the name ending or glob says.

    Takes len(pattern) x len(path) steps at most.

    >>> matches("self.[qv]*", "encoder.layer.0.attention.self.query")
    True
    """
    if not is_glob(pattern):
        return path == pattern or path.endswith("." + pattern)
    return _covers(_parts(pattern), path.split("."), lambda part, name: _covers(part, name, _is_one_of))


def chosen(patterns: Mapping[str, T], path: str, otherwise: T) -> T:
    """Return the value of the first pattern that a path matches."""
    return next((value for pattern, value in patterns.items() if matches(pattern, path)), otherwise)


@lru_cache(maxsize=1024)
def _parts(glob: str) -> tuple[Any, ...]:
    """Split a glob into its parts, each into what its characters may be; in front any number of parts."""
    return (_ANY, *(_ANY if part == "**" else _characters(part) for part in glob.split(".")))


def _characters(part: str) -> tuple[tuple[bool, frozenset[str]] | None, ...]:
    """Split one part of a glob: for each character whether it must be in a set or must not, and the set."""
    split: list[tuple[bool, frozenset[str]] | None] = []
    rest = part
    while rest:
        first, rest = rest[0], rest[1:]
        if first == "[":
            inside, closed, rest = rest.partition("]")
            wanted = not inside.startswith("!")
            if not closed or not inside.lstrip("!"):
                raise ValueError(f"'{part}': '[' opens a set of characters, which must hold some and be closed by ']'.")
            split.append((wanted, frozenset(_spelled_out(inside.removeprefix("!")))))
        elif first == "*":
            split.append(_ANY)
        else:
            split.append((False, frozenset()) if first == "?" else (True, frozenset(first)))
    return tuple(split)


def _spelled_out(characters: str) -> str:
    """Write out ranges: "0-3x" is "0123x"."""
    if len(characters) < 3:
        return characters
    first, dash, last = characters[0], characters[1], characters[2]
    if dash != "-":
        return first + _spelled_out(characters[1:])
    return "".join(map(chr, range(ord(first), ord(last) + 1))) + _spelled_out(characters[3:])


def _is_one_of(expected: tuple[bool, frozenset[str]], character: str) -> bool:
    wanted, characters = expected
    return (character in characters) == wanted


def _covers(pattern: Sequence[Any], items: Sequence[str], fits: Callable[[Any, str], bool]) -> bool:
    """Whether a split pattern covers all items: the places in it that can be reached are moved on item by item."""
    reached = _with_skipped(pattern, {0})
    for item in items:
        stay = {place for place in reached if place < len(pattern) and pattern[place] is _ANY}
        go = {place + 1 for place in reached - stay if place < len(pattern) and fits(pattern[place], item)}
        reached = _with_skipped(pattern, stay | go)
    return len(pattern) in reached


def _with_skipped(pattern: Sequence[Any], places: set[int]) -> set[int]:
    """Add the places behind each `_ANY`, since it may also stand for nothing."""
    for place, expected in enumerate(pattern):
        if expected is _ANY and place in places:
            places.add(place + 1)
    return places
