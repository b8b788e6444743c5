"""Where a bottleneck adapter's term comes in: hooks beside a sublayer, behind its norm, behind a layer.

`s` is a sublayer's output, `r` its residual, `A` a `Bottleneck`. Several active adapters each add their term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from adapterlab.errors import BackboneError


class Place(ABC):
    """Forward hook of a module that has adapters in its `bottleneck_adapter`; it does nothing while none is active."""

    def __init__(self) -> None:
        self.active: list[str] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.active:
            return output
        here: Any = module.bottleneck_adapter
        adapters = [here[name] for name in self.active]
        if not isinstance(output, tuple):
            return self.add(module, args, output, adapters)
        return (self.add(module, args, output[0], adapters), *output[1:])

    @abstractmethod
    def add(self, module: nn.Module, args: Any, output: Any, adapters: list[Any]) -> torch.Tensor:
        """Return the output with the adapters' terms."""


class BesideSublayer(Place):
    """On the module whose output is s: houlsby gives `s + A(s)`, parallel `s + A(r)`, pfeiffer `s + A(s + r)`.

    r passes elsewhere in the layer; a `Tap` keeps it for the moment between the two. Pfeiffer comes here on pre-norm
    attention only, and reads s with the other adapters' terms, as the layers behind do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.residual: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"residual": None}  # a copy of the model takes no activations along

    def add(self, module: nn.Module, args: Any, output: Any, adapters: list[Any]) -> torch.Tensor:
        """Return s with the terms."""
        s, (r, self.residual) = output, (self.residual, None)
        total = s
        for adapter in adapters:
            if adapter.variant != "pfeiffer":
                total = total + adapter(s if adapter.variant == "houlsby" else r)
        behind = [adapter for adapter in adapters if adapter.variant == "pfeiffer"]
        return _plus_terms(total, total + r, behind) if behind else total


class Tap:
    """Forward pre-hook on the module that is given r: keeps it for the place."""

    def __init__(self, place: BesideSublayer) -> None:
        self.place = place

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.place.active:
            self.place.residual = args[0] if args else kwargs["hidden_states"]


class BehindNorm(Place):
    """On a LayerNorm that reads s + r: pfeiffer gives `LN(A(LN(s + r)) + s + r)`."""

    def add(self, module: nn.Module, args: Any, output: Any, adapters: list[Any]) -> torch.Tensor:
        """Return the norm of the sum with the terms."""
        return module.forward(_plus_terms(args[0], output, adapters))


class BehindLayer(Place):
    """On a layer without a norm at its end, or one that we know nothing of: pfeiffer gives `y + A(y)`."""

    def add(self, module: nn.Module, args: Any, output: Any, adapters: list[Any]) -> torch.Tensor:
        """Return the layer's output with the terms."""
        if not isinstance(output, torch.Tensor):
            raise BackboneError(
                f"a bottleneck adapter stands behind {type(module).__name__}, which gives a {type(output).__name__}: "
                "hidden states are needed, alone or first in a tuple. Use 'lora' on this architecture."
            )
        return _plus_terms(output, output, adapters)


def _plus_terms(total: torch.Tensor, read: torch.Tensor, adapters: list[Any]) -> torch.Tensor:
    for adapter in adapters:
        total = total + adapter(read)
    return total
