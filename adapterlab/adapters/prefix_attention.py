"""Prefix tuning inside attention: keys and values in front of the tokens', and where the tokens then stand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapterlab.errors import BackboneError

ATTENTION = "adapterlab_prefix"  # the name our attention function is registered under


class PrefixState:
    """What the hooks of one model share: the encoders, and which of them are active."""

    def __init__(self, encoders: nn.ModuleDict) -> None:
        self.encoders = encoders
        self.active: list[str] = []
        self.shifts: dict[str, int] = {}

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the active prefixes' keys and values for a layer, each (1, heads, P, head size)."""
        parts: list[Any] = [self.encoders[name].layer(index) for name in self.active]  # type: ignore[operator]
        if not parts:
            return None
        both = torch.cat(parts, dim=2).to(like.dtype)
        return both[0].unsqueeze(0), both[1].unsqueeze(0)

    def shift(self) -> int:
        """Return by how many positions the real tokens move."""
        return sum(self.shifts[name] for name in self.active)


@dataclass
class PrefixSite:
    """What an attention module needs to find its prefix: the state, its layer, the config it had."""

    state: PrefixState
    layer: int
    config: Any


def attend_with_prefix(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over [prefix; tokens]: transformers calls this in place of the model's own attention function.

    Args:
        query: (batch, heads, queries, head size).
        key, value: (batch, key/value heads, keys, head size), cached tokens included, prefix not.
        attention_mask: additive or boolean, (batch or 1, 1, queries, keys), or None.
    """
    site: PrefixSite = module.prefix_site
    attend = own_attention(module, site.config)
    prefix = site.state.layer(site.layer, key)
    if prefix is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    batch, length = key.shape[0], prefix[0].shape[2]
    causal = kwargs.pop("is_causal", None)
    causal = getattr(module, "is_causal", False) if causal is None else causal
    if attention_mask is None and causal and query.shape[2] > 1:
        queries, keys = query.shape[2], key.shape[2]
        # with no mask of its own a causal model relies on the kernel, which can't know of a prefix
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
        attention_mask = allowed[None, None]
        if site.config._attn_implementation == "eager":
            zero = torch.zeros((), dtype=query.dtype, device=query.device)
            attention_mask = zero.where(attention_mask, torch.finfo(query.dtype).min)
    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        attention_mask = torch.cat([seen(*attention_mask.shape[:-1], length), attention_mask], dim=-1)
    key = torch.cat([prefix[0].expand(batch, -1, -1, -1), key], dim=2)
    value = torch.cat([prefix[1].expand(batch, -1, -1, -1), value], dim=2)
    return attend(module, query, key, value, attention_mask, is_causal=False, **kwargs)


AttentionInterface.register(ATTENTION, attend_with_prefix)


def own_attention(module: Any, config: Any) -> Callable[..., Any]:
    name = config._attn_implementation
    if name not in ("eager", "sdpa"):
        raise BackboneError(
            f"prefix tuning works with attention 'sdpa' or 'eager', and this model uses '{name}'. "
            "Call model.set_attn_implementation('sdpa')."
        )
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


class PositionShift:
    """Forward pre-hook on the module that reads position ids: real tokens come after the prefix."""

    def __init__(self, state: PrefixState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        shift = self.state.shift()
        if not shift:
            return None
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": kwargs["position_ids"] + shift}
        ids = args[-1]
        rows = position_rows(module)
        if rows is not None and ids.shape[-1] + shift > rows:
            raise BackboneError(
                f"{ids.shape[-1]} tokens behind a prefix of {shift} are more than the backbone's {rows} positions. "
                f"Truncate to {rows - shift} tokens, or attach with preserve_positions=True."
            )
        return (*args[:-1], ids + shift), kwargs


def position_rows(module: Any) -> int | None:
    """Return how many positions an embedding has; RoBERTa's begin behind the padding row. None: not a table."""
    rows = getattr(module, "num_embeddings", None)
    padding = getattr(module, "padding_idx", None)
    return rows if rows is None or padding is None else rows - padding - 1
