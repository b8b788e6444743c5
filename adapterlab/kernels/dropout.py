"""A backbone's own dropout with cheap masks: on a CPU torch draws a float per element, which costs like a linear."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from adapterlab.kernels.masks import Mask


class ByteDropout(nn.Dropout):
    """`nn.Dropout` with a `Mask`: nothing but the seed is kept for backward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input with a share p of its elements at zero and the rest scaled up."""
        if not self.training or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return super().forward(input)
        dropped: torch.Tensor = _Drop.apply(input, Mask(input, self.p))
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        ctx.mask = mask
        return mask.drop(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.mask.drop(gradient), None


@contextmanager
def byte_dropout(model: nn.Module) -> Iterator[None]:
    """Let the model's dropouts draw bytes inside the `with` block, where it is on a CPU."""
    swapped = [m for m in model.modules() if type(m) is nn.Dropout and not m.inplace] if _is_on_cpu(model) else []
    for module in swapped:
        module.__class__ = ByteDropout
    try:
        yield
    finally:
        for module in swapped:
            module.__class__ = nn.Dropout


def _is_on_cpu(model: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())
