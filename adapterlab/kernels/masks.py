"""Dropout masks that cost little: a byte is drawn for each element, and drawn again for the backward pass."""

from __future__ import annotations

import threading
import weakref

import torch

_ALL = 256  # what a byte can be


class Mask:
    """A dropout mask of one shape, known by its seed: `values` draws it anew each time, always alike.

    The rate is that of bytes, a multiple of 1/256; what is kept is scaled up by just that, so the mean is exact.
    The seed comes from torch's own generator, so `torch.manual_seed`, a resumed run's state and gradient checkpointing
    give the same masks again.
    """

    def __init__(self, like: torch.Tensor, p: float) -> None:
        self.shape, self.device = like.shape, like.device
        self.kept = round(_ALL * (1 - p))
        self.seed = int(torch.randint(2**62, ()))
        self.scale = _ALL / self.kept if self.kept else 0.0

    def keeps(self) -> torch.Tensor:
        """Return which elements stay, as booleans."""
        count = self.shape.numel()
        generator = torch.Generator(self.device).manual_seed(self.seed)
        # eight bytes a draw; without bounds `random_` leaves out the sign bit, and every eighth byte would be small
        words = torch.empty((count + 7) // 8, dtype=torch.int64, device=self.device)
        words.random_(-(2**63), None, generator=generator)
        return (words.view(torch.uint8)[:count] < self.kept).view(self.shape)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, perhaps as rows, with what is dropped at zero and the rest scaled up."""
        # scaled by a number, not by a tensor of x's dtype: in bf16 that would be off by a third of a per cent
        return (x * self.keeps().view_as(x)).mul_(self.scale)


_last = threading.local()


def shared_mask(x: torch.Tensor, p: float) -> Mask:
    """Return a mask for x: if the last one was for x as well, that one.

    What reads the same input (query, key, value) drops the same of it, and it is drawn once. Each by itself sees
    dropout as ever; only together they differ from layers with masks of their own.
    """
    last = getattr(_last, "mask", None)
    if last is not None:
        reference, version, rate, mask = last
        if reference() is x and version == x._version and rate == p:
            found: Mask = mask
            return found
    mask = Mask(x, p)
    _last.mask = (weakref.ref(x), x._version, p, mask)
    return mask
