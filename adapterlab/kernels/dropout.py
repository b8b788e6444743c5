"""Dropout on a CPU for a fraction of torch's price: a byte is drawn for each element instead of a float."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from adapterlab.kernels.masks import BYTES, drawn_bytes, kept_of, new_seed


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return x with each element at zero with probability p, and the rest scaled up: `F.dropout` in training.

    Args:
        x: of any shape and floating dtype.
        p: from 0 to 1.
    """
    output: torch.Tensor = _Dropout.apply(x, p)
    return output


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        kept = kept_of(p)
        stays = drawn_bytes(x.numel(), kept, x.device, new_seed())
        ctx.save_for_backward(stays)
        ctx.scale = BYTES / max(kept, 1)
        return _drop(x, stays, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (stays,) = ctx.saved_tensors
        return _drop(gradient, stays, ctx.scale), None


def _drop(x: torch.Tensor, stays: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.addcmul(x.new_zeros(()), x, stays.to(x.dtype).view(x.shape), value=scale)  # scaled in the same pass
