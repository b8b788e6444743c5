"""Try out whether a quicker way computes the same: a few tokens, with the trained weights shaken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterlab.backbones import at_rest

_LENGTHS = (7, 4)  # tokens of the rows that the ways are compared on


@contextmanager
def trial(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a padded batch for `model`, which inside the `with` block doesn't learn or draw masks.

    Its trained weights are shaken there, for adapters that begin at zero hide everything. Weights, mode and random
    state are afterwards what they were, to the bit.
    """
    inputs = _few_tokens(model)
    ids = inputs["input_ids"]
    # the devices by name: with all of several, fork_rng would warn
    devices = [ids.device] if ids.is_cuda else []
    with at_rest(model), _shaken(model), torch.no_grad(), torch.random.fork_rng(devices):
        yield inputs


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two ways to compute gave the same, within the rounding of their number format."""
    if one.shape != other.shape:
        return False
    rtol, atol = 1e-3, 1e-4
    if one.dtype in (torch.bfloat16, torch.float16):  # rounded in each layer, to a part of what is largest there
        rtol = 8 * torch.finfo(one.dtype).eps
        atol = rtol * other.abs().max().item()
    return torch.allclose(one.float(), other.float(), rtol=rtol, atol=atol)


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
