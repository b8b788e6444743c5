"""YAML without surprises: a small, strict reader with line numbers, and a writer whose output it reads back.

Scalars follow YAML 1.2's core schema (`1e-4` is a number, `no` and `12:30` are text). Tags, duplicate keys,
several documents and oversized or overly nested input are refused. No constructor ever runs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from adapterlab.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000  # counted after aliases are expanded, so a few lines can't unfold into gigabytes

Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_LONGEST_NUMBER = 100  # Python itself refuses to read an int of thousands of digits

_HINTS = {
    "mapping values are not allowed here": 'put a value that holds ": " in quotes',
    "found character '\\t' that cannot start any token": "indent with spaces, not tabs",
    "found character '@' that cannot start any token": "put the value in quotes",
    "found character '%' that cannot start any token": "put the value in quotes",
    "found unexpected end of stream": "a quote is opened and never closed",
    "while scanning a quoted scalar": "a quote is opened and never closed",
    "expected ',' or ']', but got": "a list [ is opened and never closed, or lacks a comma",
    "expected ',' or '}', but got": "a section { is opened and never closed, or lacks a comma",
    "found '<stream end>'": "a list [ or a section { is opened and never closed",
    "expected <block end>, but found": "the indentation of this line doesn't fit the lines above",
}


@dataclass
class Document:
    """What a YAML text says: plain Python values, and the line on which each key or item stands."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)
    duplicates: list[tuple[Path, str]] = field(default_factory=list)  # keys given twice, and what to say of them


def scalar(text: str) -> Any:
    """Return what an unquoted scalar means: None, a bool, an int, a float, or the text itself."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if len(text) <= _LONGEST_NUMBER:
        if _INT.match(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if _FLOAT.match(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def parse(text: str, source: str | None = None) -> Document:
    """Read one YAML document. Keys given twice are listed in it, for the caller to report with all else.

    Args:
        text: the YAML.
        source: what is read, put before each problem ("reviews.yaml").

    Raises:
        ConfigError: the text is not YAML, or is YAML of a kind that is refused.
    """
    where = f"{source}:" if source else "line "
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{source or 'the YAML'} is larger than {MAX_BYTES >> 20} MiB; a recipe is a page of text.")
    builder = _Builder(where)
    try:
        return builder.build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{where}{mark.line + 1}: " if mark else ""
        told = " ".join(part for part in (error.problem, error.context) if part)
        hint = next((f" ({hint})" for key, hint in _HINTS.items() if key in told), "")
        raise ConfigError(f"{line}not valid YAML: {error.problem or error.context}{hint}.") from None
    except yaml.reader.ReaderError as error:
        line = f"{where}{text.count(chr(10), 0, error.position) + 1}: "
        raise ConfigError(f"{line}not valid YAML: holds the control character {text[error.position]!r}.") from None


def dump(value: Any) -> str:
    """Write plain values as YAML that `parse` (and YAML 1.1 readers) read back as the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


@dataclass
class _Open:
    """A mapping or list whose end has not been reached."""

    value: Any
    path: Path
    anchor: str | None
    nodes_before: int
    key: str | None = None  # of a mapping: the key whose value comes next
    key_lines: dict[str, int] = field(default_factory=dict)


class _Builder:
    """Builds the values from PyYAML's events, on a stack of its own: depth can't overflow Python's."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._document = Document(None)

    def build(self, events: Iterator[yaml.Event]) -> Document:
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refuse(event, "a second document starts (---); a recipe is one document.")
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                closed = self._stack.pop()
                if closed.anchor:
                    self._anchors[closed.anchor] = (closed.value, self._nodes - closed.nodes_before)
        return self._document

    def _node(self, event: yaml.NodeEvent) -> None:
        self._count(event, 1)
        tag = getattr(event, "tag", None)
        if tag is not None:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            raise self._refuse(event, f"the tag {short} is refused; write a plain value.")
        parent = self._stack[-1] if self._stack else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._key(event, parent)
            return
        path = self._next_path(event)
        if isinstance(event, yaml.AliasEvent):
            value = self._expand(event)
        elif isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.style is None else event.value
            if event.anchor:
                self._anchors[event.anchor] = (value, 1)
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._put(value)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._stack) >= MAX_DEPTH:
                raise self._refuse(event, f"nested more than {MAX_DEPTH} levels deep.")
            self._stack.append(_Open(value, path, event.anchor, self._nodes - 1))

    def _key(self, event: yaml.NodeEvent, mapping: _Open) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._refuse(event, "a key must be plain text.")
        line = _line(event)
        mapping.key = event.value
        path = (*mapping.path, event.value)
        if event.value in mapping.key_lines:
            first = mapping.key_lines[event.value]
            self._document.duplicates.append((path, f"given twice (first on line {first}); keep one of them."))
        else:
            mapping.key_lines[event.value] = line
        self._document.lines[path] = line

    def _next_path(self, event: yaml.NodeEvent) -> Path:
        if not self._stack:
            return ()
        parent = self._stack[-1]
        if isinstance(parent.value, dict):
            return (*parent.path, parent.key or "")
        path = (*parent.path, len(parent.value))
        self._document.lines[path] = _line(event)
        return path

    def _put(self, value: Any) -> None:
        if not self._stack:
            self._document.value = value
            return
        parent = self._stack[-1]
        if isinstance(parent.value, dict):
            parent.value[parent.key] = value
            parent.key = None
        else:
            parent.value.append(value)

    def _expand(self, event: yaml.AliasEvent) -> Any:
        if event.anchor not in self._anchors:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            why = "refers to what it stands in" if inside else "has no anchor above it"
            raise self._refuse(event, f"the alias *{event.anchor} {why}.")
        value, nodes = self._anchors[event.anchor]
        self._count(event, nodes)
        return copy.deepcopy(value)

    def _count(self, event: yaml.NodeEvent, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._refuse(event, f"holds more than {MAX_NODES} values (aliases counted as often as used).")

    def _refuse(self, event: yaml.Event, why: str) -> ConfigError:
        return ConfigError(f"{self._where}{_line(event)}: {why}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


class _Dumper(yaml.SafeDumper):
    """Quotes every string that a YAML 1.1 or a YAML 1.2 reader could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # Unicode's further line breaks survive only as escapes; PyYAML's other styles fold them into spaces.
        style = '"' if any(mark in data for mark in "\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
