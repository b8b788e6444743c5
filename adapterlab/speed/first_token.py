"""Compute in the last layer only what a classification head reads of it: the first token.

Keys and values are those of all tokens; what follows attention (its output, the FFN, both norms, and the adapters on
them) is computed for one token a row. Of that layer's linears it leaves out three quarters, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterlab.backbones import describe, join
from adapterlab.errors import BackboneError
from adapterlab.kernels.unpad import Packing
from adapterlab.speed.real_tokens import PACKING, asks_for_states
from adapterlab.speed.trial import alike, trial


@contextmanager
def first_token_only(model: Any) -> Iterator[bool]:
    """Leave out the last layer's other tokens inside the `with` block, if no logit depends on them; yield whether so.

    That is tried out, on a few tokens and with the trained weights shaken: adapters that begin at zero hide nothing.
    """
    hooks = _LastLayer()
    try:
        yield hooks.enter(model) and hooks.is_exact(model)
    finally:
        hooks.leave()


class _LastLayer:
    """The hooks of one model's last layer."""

    def __init__(self) -> None:
        self.on = True
        self.inside = False  # whether the classifier runs; whoever calls the backbone alone wants all of its tokens
        self.narrows = False  # in the forward at hand, and where a checkpoint computes it again
        self.handles: list[Any] = []

    def enter(self, model: Any) -> bool:
        """Hook in, if this is a classifier whose attention's residual is added in a module: others are out of reach."""
        if not type(model).__name__.endswith("ForSequenceClassification"):
            return False
        try:
            backbone = describe(model)
        except BackboneError:
            return False
        anatomy = backbone.anatomies[-1] if backbone.anatomies else None
        if anatomy is None or anatomy.attention_sum is None:
            return False
        attention, summed = (
            model.get_submodule(join(backbone.layers[-1], name))
            for name in (anatomy.attention_in, anatomy.attention_sum)
        )
        if any(isinstance(getattr(hook, "__self__", None), _LastLayer) for hook in attention._forward_hooks.values()):
            return False  # inside another block, or a copy made in one
        base = model.get_submodule(backbone.base)
        self.handles = [
            model.register_forward_pre_hook(self._enter_classifier),
            model.register_forward_hook(self._leave_classifier, always_call=True),
            base.register_forward_pre_hook(self._look, with_kwargs=True),
            attention.register_forward_hook(self._narrow_output, with_kwargs=True),
            summed.register_forward_pre_hook(self._narrow_residual),
        ]
        return True

    def leave(self) -> None:
        """Take the hooks out."""
        while self.handles:
            self.handles.pop().remove()

    def is_exact(self, model: Any) -> bool:
        """Compare the logits with those of the whole layer; if they differ, leave."""
        with trial(model) as inputs:
            try:
                narrow, self.on = model(**inputs).logits, False
                whole, self.on = model(**inputs).logits, True
                exact = alike(narrow, whole)
            except Exception:  # the head reads another token, or an adapter has kept the residual whole
                exact = False
        if not exact:
            self.leave()
        return exact

    def _enter_classifier(self, module: nn.Module, args: Any) -> None:
        self.inside = True

    def _leave_classifier(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside = False

    def _look(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.narrows = self.on and self.inside and not asks_for_states(module, kwargs)

    def _narrow_output(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.narrows:
            return output
        states, packing = output[0] if isinstance(output, tuple) else output, kwargs.get(PACKING)
        first = _firsts(states, packing)
        if packing is not None:
            first.packing = packing  # type: ignore[attr-defined]  # for the residual, which is added to this very tensor
        return (first, *output[1:]) if isinstance(output, tuple) else first

    def _narrow_residual(self, module: nn.Module, args: Any) -> Any:
        states, residual, *more = args
        if states.shape == residual.shape:  # not narrowed
            return args
        return (states, _firsts(residual, getattr(states, "packing", None)), *more)


def _firsts(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """Return each row's first token: (batch, 1, hidden); of packed rows, (1, batch, hidden)."""
    return states[:, :1] if packing is None else states.index_select(1, packing.firsts)
