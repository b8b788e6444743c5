"""LoRA's linear in one autograd function: `y = W x + b + s B A d(x)`, Hu et al. 2021, equation 3.

Beside peft's layer it spares: the sum of the two products (the low-rank one is added into the other's output), the copy
of x in the adapter's dtype, dropout's floats and their mask (bytes, drawn again in backward), and the gradient of x in
two parts. Saved for backward are x (unless its own backward keeps what it was computed from), the r-wide A d(x) and
what the layer has anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adapterlab.kernels.masks import Mask


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    mask: Mask | None = None,
) -> torch.Tensor:
    """Return the layer's output, in x's dtype or autocast's.

    Args:
        x: (..., in).
        weight: (out, in), frozen; a GPT-2 `Conv1D`'s is given transposed.
        bias: (out,), perhaps trained.
        a: (r, in).
        b: (out, r).
        mask: the dropout on the update's input, of x's shape.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        output: torch.Tensor = _LoraLinear.apply(x, weight, bias, a, b, scaling, mask, dtype)
    return output


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    mask: Mask | None = None,
) -> torch.Tensor:
    """Compute the same in plain PyTorch."""
    dropped = x if mask is None else mask.drop(x)
    return F.linear(x, weight, bias) + F.linear(F.linear(dropped, a.to(x.dtype)), b.to(x.dtype)) * scaling


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        mask: Mask | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        # what dropout leaves is scaled up where that costs nothing: in the r-wide products' own factor
        factor = scaling if mask is None else scaling * mask.scale
        inner = (rows if mask is None else mask.keep(rows)) @ a.to(dtype).T
        w = weight.to(dtype).T
        output = rows @ w if bias is None else torch.addmm(bias.to(dtype), rows, w)
        output.addmm_(inner, b.to(dtype).T, alpha=factor)
        kept, ctx.again = _kept_anyway(x) or ((rows,), None)
        # the weight as it is: under autocast its copy in bf16 would be kept for every layer until backward
        ctx.save_for_backward(inner, weight, a, b, *kept)
        ctx.factor, ctx.mask, ctx.shape, ctx.dtype = factor, mask, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return output.view(*x.shape[:-1], output.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        inner, weight, a, b, *kept = ctx.saved_tensors
        rows = kept[0] if ctx.again is None else ctx.again(*kept).view(-1, weight.shape[1]).to(inner.dtype)
        of_x, _, of_bias, of_a, of_b, *_ = ctx.needs_input_grad
        mask, factor, dtype = ctx.mask, ctx.factor, rows.dtype
        g = gradient.reshape(-1, gradient.shape[-1]).to(dtype)
        g_inner = (g @ b.to(dtype)).mul_(factor)
        g_x = g_bias = g_a = g_b = None
        if of_a:
            g_a = (g_inner.T @ (rows if mask is None else mask.keep(rows))).to(a.dtype)
        if of_b:
            g_b = (inner.T @ g).T.mul(factor).to(b.dtype)  # this way round the product is twice as fast
        if of_x:
            g_x = g @ weight.to(dtype)
            if mask is None:
                g_x.addmm_(g_inner, a.to(dtype))
            else:
                g_x.addcmul_(g_inner @ a.to(dtype), mask.values(dtype))
            g_x = g_x.view(ctx.shape).to(ctx.dtype)
        if of_bias:
            g_bias = g.sum(0).to(ctx.bias_dtype)
        return g_x, None, g_bias, g_a, g_b, None, None, None


def _kept_anyway(x: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], Callable[..., torch.Tensor]] | None:
    """Return tensors that x's own backward keeps, and what computes x from them: a GELU, or the product of a gated FFN.

    Not where hooks handle what is saved (gradient checkpointing): asking for it would call them.
    """
    node: Any = x.grad_fn
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if node is None or top is None or top(True) is not None:
        return None
    if node.name() == "GeluBackward0":
        return (node._saved_self,), partial(F.gelu, approximate=node._saved_approximate)
    if node.name() == "MulBackward0":
        factors = (node._saved_self, node._saved_other)
        if all(factor is not None and factor.shape == x.shape and factor.dtype == x.dtype for factor in factors):
            return factors, torch.mul
    return None
