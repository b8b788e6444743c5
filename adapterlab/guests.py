"""What adapterlab keeps on a model: which adapters live in it, and what it was like before they came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adapterlab import token_rows
from adapterlab.adapters.base import METHODS, Method
from adapterlab.backbones import Backbone
from adapterlab.errors import AdapterError, unknown_name

_ATTRIBUTE = "_adapterlab_guests"


@dataclass
class Guest:
    """One adapter in one model."""

    name: str
    method_name: str
    config: Any
    heads: dict[str, nn.Module] = field(default_factory=dict)  # its own copies of the trained modules, by path
    labels: dict[int, str] = field(default_factory=dict)
    problem_type: str | None = None  # transformers keeps in the config which loss the number of labels asked for
    about: dict[str, Any] = field(default_factory=dict)  # what a run adds to adapterlab.json: task, backbone, ...

    @property
    def method(self) -> Method:
        """The method, looked up by name so that a copied model shares it."""
        return METHODS.get(self.method_name)

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return everything this adapter trains, by path: its own parameters, new tokens' and its heads'."""
        own = self.method.parameters(model, self.name)
        heads = {f"{path}.{key}": p for path, head in self.heads.items() for key, p in head.named_parameters()}
        return own | token_rows.parameters(model, self.name) | heads


@dataclass
class Guests:
    """All adapters of a model, and what `detach` needs to leave it as it was."""

    backbone: Backbone
    trainable_before: set[str]
    labels_before: dict[int, str]
    problem_type_before: str | None
    dtype_before: torch.dtype
    fingerprint: dict[str, Any] | None = None  # of the backbone, as it was before the first adapter
    heads_before: dict[str, nn.Module] = field(default_factory=dict)
    adapters: dict[str, Guest] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)

    def heading(self) -> Guest | None:
        """Return the active adapter whose head and labels the model has: the last one with a head."""
        return next(
            (self.adapters[n] for n in reversed(self.active) if n in self.adapters and self.adapters[n].heads), None
        )

    def pick(self, name: str | None, what: str) -> Guest:
        """Return the adapter of that name; without a name, the only one or the only active one.

        Raises:
            AdapterError: there is none of that name, or several come into question.
        """
        if name is not None:
            if name not in self.adapters:
                raise AdapterError(unknown_name("adapter", name, self.adapters))
            return self.adapters[name]
        candidates = list(self.adapters) if len(self.adapters) == 1 else self.active
        if len(candidates) != 1:
            raise AdapterError(
                f"the model has the adapters {', '.join(self.adapters) or 'none'} (active: "
                f"{', '.join(self.active) or 'none'}); say which one to {what}: name='...'."
            )
        return self.adapters[candidates[0]]


def guests_of(model: nn.Module) -> Guests | None:
    """Return what adapterlab keeps on the model, if anything is attached."""
    return getattr(model, _ATTRIBUTE, None)


def need_guests(model: nn.Module) -> Guests:
    """Return the model's adapters.

    Raises:
        AdapterError: it has none.
    """
    guests = guests_of(model)
    if guests is None:
        raise AdapterError(
            f"this {type(model).__name__} has no adapter. Attach one first: adapterlab.attach(model, 'lora'), "
            "or adapterlab.load(model, 'folder')."
        )
    return guests


def keep_guests(model: nn.Module, guests: Guests | None) -> None:
    """Store or forget the model's adapters."""
    if guests is not None:
        setattr(model, _ATTRIBUTE, guests)
    else:
        model.__dict__.pop(_ATTRIBUTE, None)
