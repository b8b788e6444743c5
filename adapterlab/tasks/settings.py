"""A task's own keys in a recipe, and what a task reads of a recipe's sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict


class TaskOptions(BaseModel):
    """A task's own keys in the recipe's `task` section. Subclasses declare one field per key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Protocol):
    """What is read of a recipe's `task` section."""

    @property
    def type(self) -> str: ...
    @property
    def metrics(self) -> Sequence[str] | None: ...


class DataSettings(Protocol):
    """What is read of a recipe's `data` section."""

    @property
    def columns(self) -> Mapping[str, str | list[str]]: ...
    @property
    def labels(self) -> Sequence[str] | None: ...
    @property
    def workers(self) -> int | Literal["auto"]: ...
    @property
    def cache(self) -> bool | str: ...
    @property
    def long_texts(self) -> str: ...
    @property
    def stride(self) -> int: ...
