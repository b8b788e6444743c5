"""peft's LoRA linear with a fast forward: the same parameters, file and function, computed by one autograd function."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.kernels.lora_linear import lora_linear
from adapterlab.kernels.masks import shared_mask


class LoraLinear(PeftLinear):
    """peft's layer. Where more is asked than to train one plain LoRA on a frozen linear, its own forward runs.

    So does it without gradients: there is little to spare then, and the answers are peft's to the last bit.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return `W x + b + s B A d(x)`: (..., in) to (..., out)."""
        name = self._fast(x) if not args and not kwargs else None
        if name is None:
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        base: Any = self.base_layer
        dropout: Any = self.lora_dropout[name]
        p = dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0
        mask = shared_mask(x, p) if p else None
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, weight, base.bias, a, b, self.scaling[name], mask)

    def _fast(self, x: torch.Tensor) -> str | None:
        """Return the adapter to compute with, if it is the only one and the fast way gives what peft's layer would."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or self.disable_adapters or self.merged:
            return None
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        name, base = names[0], self.base_layer
        plain = type(base) in (nn.Linear, Conv1D) and name not in self.lora_variant and not self.lora_bias[name]
        if not plain or base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
            return None
        weight = base.weight
        is_plain = type(weight) is nn.Parameter and not weight.requires_grad  # not sharded, not trained as well
        fits = x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
        return name if is_plain and fits and x.is_floating_point() else None
