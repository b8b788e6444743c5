"""Attention with dropout on its weights, for a CPU: a few heads at a time, so that their scores stay in its cache.

Torch's own attention drops out by floats, and has no fused kernel for it on a CPU. Saved for backward are queries, keys
and values as they came, the weights and a byte for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from adapterlab.kernels.masks import BYTES, drawn_bytes, kept_of, new_seed

PIECE = 2**18  # scores that stay in the cache from one operator to the next
SMALL = 2**21  # where all of them are no more, cutting them up costs what it spares


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, p: float
) -> torch.Tensor:
    """Return `dropout(softmax(scaling Q K' + mask)) V`, Vaswani et al. 2017, equation 1, with dropout on the weights.

    Args:
        query, key, value: (batch, heads, tokens, head size), in fp32.
        mask: bools, or numbers to be added (no gradient), that go with (batch, heads, queries, keys).
        p: the rate of dropout, from 0 to less than 1.

    Returns:
        (batch, heads, queries, head size), in memory (batch, queries, heads, head size).
    """
    output: torch.Tensor = _Attention.apply(query, key, value, mask, scaling, p)
    return output.transpose(1, 2)


def attending(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function of transformers' kind that is `attention` where that is quicker."""
    return partial(_attend, otherwise)


def _attend(
    otherwise: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> Any:
    p, scaling, causal = kwargs.get("dropout", 0.0), kwargs.get("scaling"), getattr(module, "is_causal", True)
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[1] == key.shape[1]
    # with gradients or without: a reentrant checkpoint runs forward without, and has to draw the same
    if not (plain and 0 < p < 1) or _is_more(kwargs, causal, attention_mask):
        return otherwise(module, query, key, value, attention_mask, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, attention_mask, scaling, p).transpose(1, 2), None


def _is_more(kwargs: dict[str, Any], causal: bool, mask: torch.Tensor | None) -> bool:
    """Whether something other than attention with a fixed mask is asked for."""
    causal = bool(causal if kwargs.get("is_causal") is None else kwargs["is_causal"])
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))
    learned = mask is not None and mask.requires_grad
    return causal or unusual or learned or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        p: float,
    ) -> torch.Tensor:
        batch, heads, queries, size = query.shape
        shape = (heads, batch, queries, key.shape[2])
        kept = kept_of(p)
        ctx.scale, ctx.scaling = BYTES / max(kept, 1), scaling
        drawn = drawn_bytes(math.prod(shape), kept, query.device, new_seed())
        stays = drawn.view(batch, heads, *shape[2:]).transpose(0, 1)
        weights, output = query.new_empty(shape), query.new_empty(batch, queries, heads, size)
        for some in _pieces(shape):
            scores = torch.bmm(_flat(query, some), _flat(key, some).mT).view(-1, *shape[1:]).mul_(scaling)
            _mask(scores, mask, some)
            torch.softmax(scores, -1, out=weights[some])
            torch.mul(weights[some], stays[some].to(scores.dtype), out=scores)
            found = torch.bmm(scores.flatten(0, 1), _flat(value, some))
            torch.mul(_heads(found, batch), ctx.scale, out=output[:, :, some])
        ctx.save_for_backward(query, key, value, weights, stays)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, weights, stays = ctx.saved_tensors
        batch = len(query)
        g_query, g_key, g_value = (x.new_empty(x.transpose(1, 2).shape) for x in (query, key, value))
        for some in _pieces(weights.shape):
            kept, soft = stays[some].to(weights.dtype), weights[some]
            g = _flat(gradient.transpose(1, 2), some) * ctx.scale
            g_value[:, :, some] = _heads(torch.bmm((soft * kept).flatten(0, 1).mT, g), batch)
            g_soft = torch.bmm(g, _flat(value, some).mT).view_as(soft).mul_(kept)
            g_scores = torch._softmax_backward_data(g_soft, soft, -1, soft.dtype).mul_(ctx.scaling).flatten(0, 1)
            g_query[:, :, some] = _heads(torch.bmm(g_scores, _flat(key, some)), batch)
            g_key[:, :, some] = _heads(torch.bmm(g_scores.mT, _flat(query, some)), batch)
        return g_query.transpose(1, 2), g_key.transpose(1, 2), g_value.transpose(1, 2), None, None, None


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Give the heads that are computed together, of scores (heads, batch, queries, keys)."""
    heads, each = shape[0], max(1, shape[1] * shape[2] * shape[3])
    step = heads if heads * each <= SMALL else max(1, PIECE // each)
    for begin in range(0, heads, step):
        yield slice(begin, min(begin + step, heads))


def _flat(x: torch.Tensor, some: slice) -> torch.Tensor:
    """Return some heads of (batch, heads, tokens, size) as (heads x batch, tokens, size); of one head it is a view."""
    return x[:, some.start] if some.stop - some.start == 1 else x[:, some].transpose(0, 1).flatten(0, 1)


def _heads(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Return (heads x batch, tokens, size) as (batch, tokens, heads, size)."""
    return x.view(-1, batch, *x.shape[1:]).permute(1, 2, 0, 3)


def _mask(scores: torch.Tensor, mask: torch.Tensor | None, some: slice) -> None:
    """Apply some heads' mask to their scores (heads, batch, queries, keys)."""
    if mask is None:
        return
    mask = mask[(None,) * (4 - mask.dim())]
    mask = (mask if mask.shape[1] == 1 else mask[:, some]).transpose(0, 1)
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    else:
        scores.add_(mask)
