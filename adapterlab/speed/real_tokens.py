"""Run an encoder on the real tokens of a batch: only attention sees its padding.

Linears, norms and adapters take each token for itself, so the tokens of all rows stand one behind the other there, in
one row, and padding isn't computed at all. Attention puts them back into their rows and takes them out again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from adapterlab.adapters.prefix_attention import ATTENTION as PREFIX
from adapterlab.adapters.prefix_attention import attend_with_prefix, own_attention
from adapterlab.backbones import describe, join
from adapterlab.errors import BackboneError
from adapterlab.kernels.unpad import Packing
from adapterlab.speed.trial import alike, trial

Through = Callable[[Callable[..., Any]], Callable[..., Any]]
ATTENTION = "adapterlab_real_tokens"  # the name our attention function is registered under
PACKING = "packing"  # the keyword by which the layers hand the batch's `Packing` down to their attention
_WORTH = 0.92  # with more real tokens than this share of the places, taking them out costs more than it spares
# Heads that read each token for itself, or a row's first. A head for answers also weighs the places of padding.
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForMultipleChoice", "Model")


@contextmanager
def real_tokens_only(model: Any, through: Through | None = None) -> Iterator[bool]:
    """Leave padding out of the encoder inside the `with` block, where that is exact; yield whether it can be done.

    That is tried out on a few tokens. Batches with little padding are computed as they are.

    Args:
        through: gives what computes attention instead of torch's own function.
    """
    hooks = _Encoder(through)
    try:
        yield hooks.enter(model) and hooks.is_exact(model)
    finally:
        hooks.leave()


class _Encoder:
    """The hooks of one model's encoder, and its attention modules' way to our function."""

    def __init__(self, through: Through | None) -> None:
        self.through = through
        self.on = True
        self.asked = False  # whether somebody wants to see the states of every layer, which are to be whole then
        self.handles: list[Any] = []
        self.configs: list[tuple[Any, Any, Any]] = []  # attention modules, the configs they had, and those from us

    def enter(self, model: Any) -> bool:
        """Hook in, if this is an encoder whose attention asks for its function by name: others are out of reach."""
        if not type(model).__name__.endswith(_HEADS) or getattr(model.config, "is_decoder", False):
            return False
        try:
            backbone = describe(model)
        except BackboneError:
            return False
        if not backbone.anatomies or backbone.anatomies[0].encoder is None:
            return False
        places = {backbone.at(layer, "attention") for layer in range(len(backbone.layers))}
        attentions: list[Any] = [model.get_submodule(place) for place in places]
        if any(attention.config._attn_implementation == ATTENTION for attention in attentions):
            return False  # inside another block, or a copy made in one
        try:
            functions = [_function(attention, self.through) for attention in attentions]
        except BackboneError:
            return False
        for attention, function in zip(attentions, functions, strict=True):
            config = copy.copy(attention.config)  # its own, so that masks are made as before
            config._attn_implementation = ATTENTION
            self.configs.append((attention, attention.config, config))
            attention.attend_to_rows, attention.config = function, config
        base = model.get_submodule(backbone.base)
        encoder = model.get_submodule(join(backbone.base, backbone.anatomies[0].encoder))
        self.handles = [
            base.register_forward_pre_hook(self._look, with_kwargs=True),
            encoder.register_forward_pre_hook(self._pack, with_kwargs=True),
            encoder.register_forward_hook(self._unpack, with_kwargs=True),
        ]
        return True

    def leave(self) -> None:
        """Take the hooks out."""
        while self.handles:
            self.handles.pop().remove()
        for attention, before, config in self.configs:
            if attention.config is config:  # else a prefix has been switched or taken out since
                attention.config = before
            del attention.attend_to_rows
        self.configs.clear()

    def is_exact(self, model: Any) -> bool:
        """Compare what is said of real tokens with what it is with padding; if it differs, leave."""
        with trial(model) as inputs:
            try:
                packed, self.on = _answer(model, inputs), False
                padded, self.on = _answer(model, inputs), True
                exact = alike(packed, padded)
            except Exception:  # a layer doesn't hand on what its attention has to know, or wants other lengths
                exact = False
        if not exact:
            self.leave()
        return exact

    def _look(self, module: Any, args: Any, kwargs: Any) -> None:
        self.asked = asks_for_states(module, kwargs)

    def _pack(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        ours = all(attention.config is config for attention, _, config in self.configs)
        if not (self.on and ours) or self.asked or torch.compiler.is_compiling() or self._compiled(module):
            return None
        packing = _packing(states, mask)
        if packing is None:
            return None
        packed = packing.pack(states)
        kwargs = {**kwargs, PACKING: packing}
        return ((packed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": packed})

    @staticmethod
    def _compiled(encoder: nn.Module) -> bool:
        """Whether layers are compiled, which would be done anew for each batch's `Packing`."""
        return any(module._compiled_call_impl is not None for module in encoder.modules())

    def _unpack(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        packing = kwargs.get(PACKING)
        if packing is None:
            return output
        if isinstance(output, torch.Tensor):
            return _whole(output, packing)
        if isinstance(output, tuple):
            return (_whole(output[0], packing), *output[1:])
        output.last_hidden_state = _whole(output.last_hidden_state, packing)
        return output


def asks_for_states(base: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a backbone is called by somebody who wants to see the states or attention of every layer."""
    names = ("output_hidden_states", "output_attentions")
    return any(kwargs.get(name) or getattr(base.config, name, False) for name in names)


def attend_to_rows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put packed tokens back into their rows, let them attend as the module does by itself, and pack them again.

    Args:
        query, key, value: (1, heads, tokens, head size), or what attention is given without packing.
        attention_mask: the padded batch's.
    """
    attend = module.attend_to_rows
    if packing is None:
        answer: tuple[torch.Tensor, torch.Tensor | None] = attend(module, query, key, value, attention_mask, **kwargs)
        return answer
    rows = [packing.unpack(tokens.transpose(1, 2)).transpose(1, 2) for tokens in (query, key, value)]
    output, weights = attend(module, *rows, attention_mask, **kwargs)
    return packing.pack(output), weights


AttentionInterface.register(ATTENTION, attend_to_rows)


def _function(attention: Any, through: Through | None) -> Any:
    with_prefix = attention.config._attn_implementation == PREFIX
    config = attention.prefix_site.config if with_prefix else attention.config
    quicker = through if config._attn_implementation == "sdpa" else None
    if with_prefix:
        return partial(attend_with_prefix, through=quicker)
    function = own_attention(attention, config)
    return function if quicker is None else quicker(function)


def _packing(states: torch.Tensor, mask: Any) -> Packing | None:
    """Return where the real tokens stand, if the mask hides padding and nothing else, and enough of it."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4 or mask.shape[:2] != (len(states), 1):
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    real = seen[:, 0, 0]
    if real.shape != states.shape[:2] or int(real.sum()) > _WORTH * real.numel():
        return None
    # a mask that isn't alike for all tokens says more than what is padding; heads read a row's first token
    same = bool((seen == seen[:, :, :1]).all())
    return Packing(real) if same and bool(real[:, 0].all()) and int(real.sum()) > len(real) else None


def _whole(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return states by rows; where only each row's first token was computed, (rows, 1, hidden)."""
    return packing.unpack(states) if states.shape[1] == packing.tokens else states.transpose(0, 1)


def _answer(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the model says of the real tokens, or of each row."""
    choices = type(model).__name__.endswith("ForMultipleChoice")
    outputs = model(**{name: tensor.unsqueeze(1) if choices else tensor for name, tensor in inputs.items()})
    found: torch.Tensor = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    return found[inputs["attention_mask"].bool()] if found.shape[:2] == inputs["attention_mask"].shape else found
