"""Dropout on a CPU for a fraction of torch's price: a byte is drawn for each element instead of a float."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, p: float
) -> torch.Tensor:
    """Return `dropout(softmax(scaling Q K' + mask)) V`, Vaswani et al. 2017, equation 1, with dropout on the weights.

    Torch's own attention drops out by floats, too, and has no fused kernel for it on a CPU.

    Args:
        query, key, value: (batch, heads, tokens, head size).
        mask: bools, or numbers to be added, that go with (batch, heads, queries, keys).

    Returns:
        (batch, heads, queries, head size).
    """
    scores = torch.matmul(query, key.transpose(-2, -1)).mul_(scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores.add_(mask)
    return torch.matmul(dropout(scores.softmax(-1), p), value)


def attending(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function of transformers' kind that is `attention` where that is quicker."""
    return partial(_attend, otherwise)


def _attend(
    otherwise: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> Any:
    p, scaling, causal = kwargs.get("dropout", 0.0), kwargs.get("scaling"), getattr(module, "is_causal", True)
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[1] == key.shape[1]
    # with gradients or without: a reentrant checkpoint runs forward without, and has to draw the same
    if not (plain and 0 < p < 1) or _is_more(kwargs, causal):
        return otherwise(module, query, key, value, attention_mask, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, attention_mask, scaling, p).transpose(1, 2).contiguous(), None


def _is_more(kwargs: dict[str, Any], causal: bool) -> bool:
    """Whether something other than attention with a mask is asked for."""
    causal = bool(causal if kwargs.get("is_causal") is None else kwargs["is_causal"])
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))
    return causal or unusual or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


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
