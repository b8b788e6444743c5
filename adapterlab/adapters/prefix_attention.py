"""Prefix tuning inside attention: keys and values in front of the tokens', and where the tokens then stand."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

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

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the active prefixes' keys and values for a layer, each (1, heads, P, head size)."""
        parts: list[Any] = [self.encoders[name].layer(index) for name in self.active]  # type: ignore[operator]
        both = torch.cat(parts, dim=2).to(like.dtype)
        return both[0].unsqueeze(0), both[1].unsqueeze(0)

    def shift(self) -> int:
        """Return by how many positions the real tokens move."""
        return sum(self.shifts[name] for name in self.active)


@dataclass
class PrefixSite:
    """What an attention module needs to find its prefix: the state, its layer, its config and the one it had."""

    state: PrefixState
    layer: int
    view: Any
    config: Any

    @classmethod
    def open(cls, attention: Any, state: PrefixState, layer: int) -> None:
        """Make an attention module ready for prefixes."""
        # a config of its own, so that only the attention itself, not the masks, sees our function
        view = copy.copy(attention.config)
        view._attn_implementation = ATTENTION
        attention.prefix_site = cls(state, layer, view, attention.config)


def attend_with_prefix(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    through: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over [prefix; tokens]: transformers calls this in place of the model's own attention function.

    Args:
        query: (batch, heads, queries, head size).
        key, value: (batch, key/value heads, keys, head size), cached tokens included, prefix not.
        attention_mask: additive or boolean, (batch or 1, 1, queries, keys), or None.
        through: gives what computes instead of the model's own function.
    """
    site: PrefixSite = module.prefix_site
    attend = own_attention(module, site.config)
    attend = attend if through is None else through(attend)
    keys, values = site.state.layer(site.layer, key)
    batch, length, queries = key.shape[0], keys.shape[2], query.shape[2]
    causal = kwargs.pop("is_causal", None)
    causal = getattr(module, "is_causal", False) if causal is None else causal
    if attention_mask is None and causal and queries > 1:
        # With no mask a causal model relies on the kernel, which can't know of a prefix. There are as many keys as
        # queries then, or (static cache) the others are still empty and the kernel would drop them too.
        key, value = key[:, :, :queries], value[:, :, :queries]
        attention_mask = torch.ones(queries, queries, dtype=torch.bool, device=key.device).tril()[None, None]
        if site.config._attn_implementation == "eager":
            zero = torch.zeros((), dtype=query.dtype, device=query.device)
            attention_mask = zero.where(attention_mask, torch.finfo(query.dtype).min)
    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        attention_mask = torch.cat([seen(*attention_mask.shape[:-1], length), attention_mask], dim=-1)
    key = torch.cat([keys.expand(batch, -1, -1, -1), key], dim=2)
    value = torch.cat([values.expand(batch, -1, -1, -1), value], dim=2)
    return attend(module, query, key, value, attention_mask, is_causal=False, **kwargs)


AttentionInterface.register(ATTENTION, attend_with_prefix)


def own_attention(module: Any, config: Any) -> Callable[..., Any]:
    """Return the function that an attention module computes with by itself.

    Raises:
        BackboneError: we can't give that function a prefix.
    """
    name = config._attn_implementation
    if name not in ("eager", "sdpa"):
        raise BackboneError(
            f"prefix tuning works with attention 'sdpa' or 'eager', and this model uses '{name}'. "
            "Call model.set_attn_implementation('sdpa')."
        )
    defined_in = sys.modules[type(module).__module__]
    if not hasattr(defined_in, "ALL_ATTENTION_FUNCTIONS"):
        raise BackboneError(
            f"prefix tuning needs transformers' attention interface, and {type(module).__name__} doesn't call it. "
            "Upgrade transformers, or use 'lora', 'adalora' or 'bottleneck'."
        )
    if name == "eager":  # each architecture has its own
        return cast(Callable[..., Any], vars(defined_in)["eager_attention_forward"])
    return cast(Callable[..., Any], ALL_ATTENTION_FUNCTIONS[name])


class PositionShift:
    """Forward pre-hook on the module that reads position ids: real tokens come after the prefix."""

    def __init__(self, state: PrefixState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        shift = self.state.shift()
        if not shift:
            return None
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": _shifted(module, kwargs["position_ids"], shift)}
        # an embedding is given the ids alone, a rotation something of the dtype wanted and then the ids
        at = 0 if isinstance(module, nn.Embedding) else 1
        return (*args[:at], _shifted(module, args[at], shift), *args[at + 1 :]), kwargs


def _shifted(module: nn.Module, ids: torch.Tensor, shift: int) -> torch.Tensor:
    """Return the position ids moved by `shift`; those of padding, where they differ from any token's, stay.

    Raises:
        BackboneError: there are not so many positions.
    """
    rows, first = position_rows(module), first_position(module)
    if rows is None:
        return ids + shift
    last = ids.shape[-1]
    # reading the ids makes a GPU wait: no matter in inference, and training stays within the rows' length
    cheap = not torch.compiler.is_compiling() and not (ids.is_cuda and torch.is_grad_enabled())
    if not ids.is_meta and (cheap or last + shift > rows):
        last = int(ids.max()) + 1 - first
    if last + shift > rows:
        raise BackboneError(
            f"{last} tokens behind a prefix of {shift} are more than the backbone's {rows} positions. "
            f"Truncate to {rows - shift} tokens (in generate: prompt and new tokens together), or attach with "
            "preserve_positions=True."
        )
    return torch.where(ids < first, ids, ids + shift)


def position_rows(module: Any) -> int | None:
    """Return how many positions an embedding has; RoBERTa's begin behind the padding row. None: not a table."""
    rows = getattr(module, "num_embeddings", None)
    return None if rows is None else rows - first_position(module) - getattr(module, "offset", 0)


def first_position(module: Any) -> int:
    """Return the first token's position id: RoBERTa keeps lower ones for padding. (OPT's padding has -1.)"""
    padding = getattr(module, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
