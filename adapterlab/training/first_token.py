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

_LENGTHS = (7, 4)  # tokens of the rows that the two ways are compared on


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
        self.handles = [
            attention.register_forward_hook(self._narrow_output),
            summed.register_forward_pre_hook(self._narrow_residual),
        ]
        return True

    def leave(self) -> None:
        """Take the hooks out."""
        while self.handles:
            self.handles.pop().remove()

    def is_exact(self, model: Any) -> bool:
        """Compare the logits with those of the whole layer; if they differ, leave. Model and random state stay."""
        inputs, training = _few_tokens(model), model.training
        ids = inputs["input_ids"]
        forked = torch.random.fork_rng([ids.device] if ids.is_cuda else [])  # or it would warn of machines with several
        model.eval()
        try:
            with _shaken(model), torch.no_grad(), forked:
                narrow, self.on = model(**inputs).logits, False
                whole, self.on = model(**inputs).logits, True
            exact = narrow.shape == whole.shape and torch.allclose(narrow.float(), whole.float(), rtol=1e-3, atol=1e-4)
        except (RuntimeError, IndexError):  # the head reads another token, or an adapter has kept the residual whole
            exact = False
        finally:
            model.train(training)
        if not exact:
            self.leave()
        return exact

    def _narrow_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.on:
            return output
        return (output[0][:, :1], *output[1:]) if isinstance(output, tuple) else output[:, :1]

    def _narrow_residual(self, module: nn.Module, args: Any) -> Any:
        return (args[0], args[1][:, :1], *args[2:]) if self.on else args


def _few_tokens(model: Any) -> dict[str, torch.Tensor]:
    words = model.get_input_embeddings().weight
    shape = (len(_LENGTHS), max(_LENGTHS))
    ids = torch.randint(len(words), shape, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[int(place < length) for place in range(shape[1])] for length in _LENGTHS])
    return {"input_ids": ids.to(words.device), "attention_mask": mask.to(words.device)}


@contextmanager
def _shaken(model: nn.Module) -> Iterator[None]:
    """Add noise to what is trained; put it back to the bit."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    noise = torch.Generator().manual_seed(2)
    try:
        for parameter in trained:
            shake = torch.randn(parameter.shape, generator=noise).mul_(0.05)
            parameter.data.add_(shake.to(parameter.device, parameter.dtype))
        yield
    finally:
        for parameter, value in zip(trained, kept, strict=True):
            parameter.data.copy_(value)
