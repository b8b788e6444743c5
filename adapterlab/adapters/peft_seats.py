"""What peft keeps beside a method's layers: its configs, and tensors that all layers share.

They sit in peft's tuner object, which holds the model. Here the model holds the tuner, as a plain attribute and without
the model inside, so that copies have their own. Around the model again, it is what peft's functions work on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_SEATS = "_adapterlab_tuners"


@dataclass
class Seat:
    """One method's tuner, and the targets of each adapter: their paths, and the names that peft was given for them."""

    tuner: Any
    paths: dict[str, set[str]] = field(default_factory=dict)
    endings: dict[str, list[str]] = field(default_factory=dict)


class PeftView(nn.Module):
    """What peft's functions take for a `PeftModel`: the tuner, with the model inside, under the name `base_model`."""

    def __init__(self, tuner: Any) -> None:
        super().__init__()
        self.base_model = tuner
        self.peft_config = tuner.peft_config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def seats_of(model: nn.Module) -> dict[str, Seat]:
    """Return the model's seats by method; what is put there stays."""
    seats: dict[str, Seat] = model.__dict__.setdefault(_SEATS, {})
    return seats


def forget_if_empty(model: nn.Module) -> None:
    """Leave nothing on a model where no method has a seat."""
    if not model.__dict__.get(_SEATS):
        model.__dict__.pop(_SEATS, None)


@contextlib.contextmanager
def view_of(model: nn.Module, method: str) -> Iterator[Any]:
    """Give the model to a method's tuner for a while, and both to whoever works on them through peft."""
    tuner = seats_of(model)[method].tuner
    tuner.model = model
    try:
        yield PeftView(tuner)
    finally:
        del tuner.model
