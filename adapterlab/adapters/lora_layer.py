"""peft's linears with a low-rank update, and a fast forward: the same parameters, file and function in one product."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.adalora.layer import SVDLinear as PeftSVDLinear
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.kernels.lora_linear import lora_linear
from adapterlab.kernels.masks import shared_mask

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Fast:
    """Goes before peft's layer. Where more is asked than to train one update of a frozen linear, peft's forward runs.

    So does it without gradients and dropout: there is little to spare then, and the answers are peft's to the last bit.
    """

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return A (r, in), B (out, r) and s of the update `s B A`."""
        raise NotImplementedError

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return `W x + b + s B A d(x)`: (..., in) to (..., out)."""
        name = self._fast(x) if not args and not kwargs else None
        if name is None:
            output: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return output
        base, p = self.base_layer, self._rate(name)
        mask = shared_mask(x, p) if p else None
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        a, b, scaling = self.factors(name)
        return lora_linear(x, weight, base.bias, a, b, scaling, mask)

    def obstacle(self: Any, name: str) -> str | None:
        """Return why this adapter's update isn't computed in one function with the linear, if it isn't."""
        base = self.base_layer
        if sum(other in self.lora_A for other in self.active_adapters) > 1:
            return "several adapters are active at once"
        if name in self.lora_variant:
            return f"{type(self.lora_variant[name]).__name__.removesuffix('LinearVariant')} is more than W + BA"
        if self.lora_bias.get(name):
            return "lora_bias adds a bias of its own"
        if type(base) not in (nn.Linear, Conv1D):
            return f"the linear is a {type(base).__name__}"
        if type(base.weight) is not nn.Parameter:
            return f"the linear's weight is a {type(base.weight).__name__}"
        if base.weight.requires_grad:
            return "the linear's own weight is trained, too"
        if "forward" in base.__dict__:
            return "somebody has replaced the linear's forward"
        parts = (base, self.lora_A[name], self.lora_B[name], self.lora_dropout[name])
        if any(getattr(part, hooks) for part in parts if isinstance(part, nn.Module) for hooks in _HOOKS):
            return "somebody has put hooks on the linear itself, or on the adapter's own modules"
        return None

    def _rate(self: Any, name: str) -> float:
        """Return the rate at which the adapter drops out now."""
        dropout = self.lora_dropout[name]
        return dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0

    def _fast(self: Any, x: torch.Tensor) -> str | None:
        """Return the adapter to compute with, if it is the only one and the fast way gives what peft's layer would."""
        if self.disable_adapters or self.merged or torch.compiler.is_compiling():
            return None
        name = next((name for name in self.active_adapters if name in self.lora_A), None)
        if name is None or not x.is_floating_point():
            return None
        if not torch.is_grad_enabled() and not self._rate(name):  # with dropout, a reentrant checkpoint must draw alike
            return None
        if self.obstacle(name) is not None:
            return None
        fits = x.dtype == self.base_layer.weight.dtype or torch.is_autocast_enabled(x.device.type)
        return name if fits else None


class LoraLinear(_Fast, PeftLinear):
    """LoRA's layer: Hu et al. 2021, equation 3."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return A, B and alpha / r."""
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]


class SVDLinear(_Fast, PeftSVDLinear):
    """AdaLoRA's layer: Zhang et al. 2023, equation 3."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return Λ Q, P and alpha / init_r."""
        inner = self.lora_A[name] * self.lora_E[name]
        return inner, self.lora_B[name], self.scaling[name] / (self.r[name] + 1e-5)  # peft's own guard against r = 0


_FAST = {PeftLinear: LoraLinear, PeftSVDLinear: SVDLinear}


def quicken(layers: Iterable[nn.Module]) -> None:
    """Give those of peft's layers that have one the faster forward, in place."""
    for layer in layers:
        layer.__class__ = _FAST.get(type(layer), type(layer))  # type: ignore[assignment]
