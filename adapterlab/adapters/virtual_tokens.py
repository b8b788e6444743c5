"""Virtual tokens: trained embeddings in front of the tokens', put there and taken away again by hooks.

No wrapper: a forward pre-hook turns what a module is given into [prompt; tokens], and a forward hook cuts the prompt
out of what it returns, so that heads, labels and losses need to know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adapterlab.errors import BackboneError

# inputs that may have an entry for each token: those that are lengthened, and those that have none
UNDERSTOOD = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "labels", "head_mask")
PER_TOKEN = ("last_hidden_state", "hidden_states", "attentions")
CACHES = ("cache", "past_key_values")  # what transformers calls the cache, since 5.24 and before


@dataclass
class PromptState:
    """What the hooks of one model share: the modules that make the prompts, and which are active, by method."""

    encoders: nn.ModuleDict
    active: dict[str, list[str]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the active prompts in the order in which they stand."""
        return [name for method in sorted(self.active) for name in self.active[method]]

    def prompt(self) -> torch.Tensor:
        """Return the active prompts, one behind the other, (P, embedding size)."""
        return torch.cat([self.encoders[name]() for name in self.names()])

    def length(self) -> int:
        """Return the number P of virtual tokens."""
        encoders: Any = self.encoders
        return sum(encoders[name].embedding.num_embeddings for name in self.names())


class Prepend:
    """Forward pre-hook: the prompt's embeddings before the tokens', with mask, token types and positions to match.

    Args:
        state: the model's prompts.
        names: the positional arguments of the module's forward.
        rows: how many positions the backbone has a table for; None if it has none.
        first: the first position id (RoBERTa counts from behind its padding row).
    """

    def __init__(self, state: PromptState, names: tuple[str, ...], rows: int | None, first: int) -> None:
        self.state = state
        self.names = names
        self.rows = rows
        self.first = first

    def __call__(self, module: Any, args: Any, kwargs: Any) -> Any:
        length = self.state.length()
        inputs = dict(zip(self.names, args, strict=False)) | kwargs
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        if not length or (ids is None) == (embeds is None):
            return None  # the model itself says what is wrong with neither or both
        tokens = ids.shape[-1] if ids is not None else embeds.shape[-2]
        past = cached(inputs)
        total = tokens + (past or length)
        if self.rows is not None and total > self.rows:
            raise BackboneError(
                f"{total - length} tokens behind {length} virtual tokens are more than the backbone's {self.rows} "
                f"positions. Truncate to {self.rows - length} tokens."
            )
        if "cache_position" in inputs:  # of older releases: they count it from the cache when it isn't given
            inputs["cache_position"] = None
        if past:
            self._stretch(inputs, past, tokens, length)
        else:
            self._prepend(inputs, module.get_input_embeddings()(ids) if embeds is None else embeds)
        return (), inputs

    def _prepend(self, inputs: dict[str, Any], embeds: torch.Tensor) -> None:
        """First pass: embeds is (batch, tokens, size), or (batch, choices, tokens, size)."""
        for name, value in inputs.items():
            if name not in UNDERSTOOD and not name.startswith("encoder_") and _is_per_token(value, embeds.shape[-2]):
                raise BackboneError(
                    f"'{name}' of shape {list(value.shape)} has an entry for each token, and what it should be for "
                    "virtual tokens isn't known. Leave it out, or use lora."
                )
        if inputs.get("cu_seq_lens_q") is not None:
            raise BackboneError(
                "virtual tokens stand in front of each row, and several texts packed into one row would share them. "
                "Give one text per row, or use lora."
            )
        if getattr(_cache(inputs), "is_compileable", False):
            raise BackboneError(
                "a static cache has no room for virtual tokens: it is made for the text's length. "
                "Generate without cache_implementation."
            )
        prompt = self.state.prompt().to(embeds)
        inputs["inputs_embeds"] = torch.cat([prompt.expand(*embeds.shape[:-2], *prompt.shape), embeds], dim=-2)
        if "input_ids" in inputs:
            inputs["input_ids"] = None
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = _lengthen(inputs["attention_mask"], len(prompt), embeds.ndim - 1)
        if inputs.get("token_type_ids") is not None:
            types = inputs["token_type_ids"]
            inputs["token_type_ids"] = torch.cat([types.new_zeros(*types.shape[:-1], len(prompt)), types], dim=-1)
        if inputs.get("position_ids") is not None:
            ids = inputs["position_ids"]
            own = torch.arange(self.first, self.first + len(prompt), dtype=ids.dtype, device=ids.device)
            inputs["position_ids"] = torch.cat([own.expand(*ids.shape[:-1], -1), ids + len(prompt)], dim=-1)

    def _stretch(self, inputs: dict[str, Any], past: int, tokens: int, length: int) -> None:
        """Later pass: the prompt is in the cache, and mask and positions count it."""
        mask = inputs.get("attention_mask")
        if mask is not None:
            mask = inputs["attention_mask"] = _lengthen(mask, length, 2)
            if mask.shape[-1] != past + tokens:
                raise BackboneError(
                    f"the cache holds {past} positions and the mask is for {mask.shape[-1] - length} tokens, {tokens} "
                    f"of them new: with {length} virtual tokens in front that doesn't add up. A cache must begin with "
                    "the active prompts: start from an empty one and give the whole text."
                )
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + length


class Cut:
    """Forward hook: hidden states and attentions of the tokens only. Attentions keep the prompt among their keys."""

    def __init__(self, state: PromptState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        length, embeds = self.state.length(), kwargs.get("inputs_embeds")
        if not length or embeds is None or cached(kwargs) > embeds.shape[-2]:
            return None  # nothing was put in front in this pass
        if not isinstance(output, dict):  # a tuple, or a tensor alone
            return _cut(output, length, embeds.shape[-2])
        for key in PER_TOKEN:
            if output.get(key) is not None:
                output[key] = _cut(output[key], length, embeds.shape[-2])
        return output


class LengthenCross:
    """Forward pre-hook of a decoder: the encoder's output has the prompt in front, and the mask over it must too."""

    def __init__(self, state: PromptState, names: tuple[str, ...]) -> None:
        self.state = state
        self.names = names

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        inputs = dict(zip(self.names, args, strict=False)) | kwargs
        hidden, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
        length = self.state.length()
        if hidden is None or mask is None or not length or mask.shape[-1] + length != hidden.shape[1]:
            return None
        return (), inputs | {"encoder_attention_mask": _lengthen(mask, length, 2)}


def cached(inputs: dict[str, Any]) -> int:
    """Return how many positions the cache among a forward's inputs holds."""
    cache = _cache(inputs)
    return int(cache.get_seq_length()) if cache is not None else 0


def _cache(inputs: dict[str, Any]) -> Any:
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def _lengthen(mask: Any, length: int, dims: int) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor) or mask.ndim != dims:
        given = f"one of shape {list(mask.shape)}" if isinstance(mask, torch.Tensor) else f"a {type(mask).__name__}"
        raise BackboneError(
            f"virtual tokens need an attention mask of shape (batch, tokens), and {given} was given. Static caches "
            "come with such masks: generate without cache_implementation."
        )
    return torch.cat([mask.new_ones(*mask.shape[:-1], length), mask], dim=-1)


def _is_per_token(value: Any, tokens: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == tokens


def _cut(value: Any, length: int, total: int) -> Any:
    """Take the first positions out of (batch, total, size) and (batch, heads, total, keys)."""
    if isinstance(value, tuple | list):
        return type(value)(_cut(part, length, total) for part in value)
    if not isinstance(value, torch.Tensor) or value.ndim not in (3, 4) or value.shape[value.ndim - 2] != total:
        return value
    return value[..., length:, :]
