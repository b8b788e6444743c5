"""A registry of named parts (methods, tasks, metrics): decorate to register, look up with a helpful error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from adapterlab.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names and aliases to entries of one kind.

    Args:
        kind: what an entry is, for messages ("method").
        group: entry-point group through which other distributions add entries; each entry point names a
            module whose import registers them. They are loaded at the first look-up. One that fails to
            import adds nothing, is kept in `failures`, by its name and distribution, and breaks nothing else.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.failures: dict[str, str] = {}
        self.reasons: dict[str, str] = {}  # why a name that somebody may look for isn't here
        self._group = group
        self._loaded = False
        self._entries: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, entry: T, *, aliases: tuple[str, ...] = (), replace: bool = False) -> T:
        """Add an entry, or put it in the place of the one of that name.

        Raises:
            ConfigError: the name or an alias is taken by something else.
        """
        for taken in (name, *aliases):
            owner = self._aliases.get(taken, taken)
            if owner in self._entries and not (replace and owner == name):
                raise ConfigError(f"{self.kind} '{taken}' is registered already; choose another name.")
        self._entries[name] = entry
        self._aliases.update(dict.fromkeys(aliases, name))
        return entry

    def get(self, name: str) -> T:
        """Return the entry.

        Raises:
            ConfigError: there is none; the message lists those there are and the nearest one.
        """
        self._load_entry_points()
        key = self._aliases.get(name, name)
        if key not in self._entries:
            broken = "; ".join(f"plugin '{plugin}' failed: {why}" for plugin, why in self.failures.items())
            hint = " ".join(part for part in (self.reasons.get(name), f"({broken})" if broken else None) if part)
            raise ConfigError(unknown_name(self.kind, name, [*self._entries, *self._aliases], hint))
        return self._entries[key]

    def canonical(self, name: str) -> str:
        """Return the name that `name`, perhaps an alias, stands for."""
        self.get(name)
        return self._aliases.get(name, name)

    def names(self) -> list[str]:
        """Return the registered names, without aliases, in the order of registration."""
        self._load_entry_points()
        return list(self._entries)

    def aliases(self, name: str) -> tuple[str, ...]:
        """Return the other names of an entry."""
        return tuple(alias for alias, target in self._aliases.items() if target == name)

    def so_far(self) -> dict[str, T]:
        """Return what is registered by now, without loading plugins: a plugin may be what asks."""
        return dict(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load_entry_points()
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._load_entry_points()
        return iter(list(self._entries.items()))

    def _load_entry_points(self) -> None:
        if self._loaded or self._group is None:
            return
        self._loaded = True
        for point in entry_points(group=self._group):
            before, is_new = (dict(self._entries), dict(self._aliases)), point.module not in sys.modules
            try:
                point.load()
                if is_new and self._entries == before[0]:
                    raise ConfigError(f"importing {point.module} registered no {self.kind}")
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin is a stranger: whatever it raises, the others go on
                self._entries, self._aliases = before
                owner = f" ({point.dist.name} {point.dist.version})" if point.dist else ""
                self.failures[f"{point.name}{owner}"] = " ".join(f"{type(error).__name__}: {error}".split())
