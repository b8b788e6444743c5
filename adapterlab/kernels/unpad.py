"""Leave out the padding of a batch: its real tokens one behind the other, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class Packing:
    """Where the real tokens of a padded batch stand.

    Args:
        real: (batch, length) of bools; in each row at least one token is real.
    """

    def __init__(self, real: torch.Tensor) -> None:
        self.rows, self.length = real.shape
        self.places = real.flatten().nonzero().squeeze(1)  # (tokens,): where each stands in the padded batch
        self.tokens = len(self.places)
        # (batch * length,): which token stands there; padding repeats the first, for a copy is cheaper than zeros
        self.sources = self.places.new_zeros(real.numel())
        self.sources[self.places] = torch.arange(self.tokens, device=real.device)

    @property
    def firsts(self) -> torch.Tensor:
        """The rows' first tokens, (rows,), by their places among the packed; each row begins with a real one."""
        return self.sources[:: self.length]

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the real tokens: (batch, length, ...) to (1, tokens, ...)."""
        flat = padded.reshape(self.rows * self.length, -1)
        packed: torch.Tensor = _Take.apply(flat, self.places, self.sources, True)
        return packed.view(1, self.tokens, *padded.shape[2:])

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Return the padded batch: (1, tokens, ...) to (batch, length, ...). What stands at padding is finite, no more.

        No gradient comes back from there.
        """
        flat = packed.reshape(self.tokens, -1)
        padded: torch.Tensor = _Take.apply(flat, self.sources, self.places, False)
        return padded.view(self.rows, self.length, *packed.shape[2:])


class _Take(torch.autograd.Function):
    """Take rows; each has at most one place to get a gradient from, so in backward too they are taken, not added up."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, taken: torch.Tensor, back: torch.Tensor, holes: bool) -> torch.Tensor:
        ctx.save_for_backward(taken, back)
        ctx.holes, ctx.count = holes, len(rows)
        return rows.index_select(0, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        taken, back = ctx.saved_tensors
        if ctx.holes:  # what wasn't taken has no gradient
            found = gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, taken, gradient)
        else:
            found = gradient.index_select(0, back)
        return found, None, None, None
