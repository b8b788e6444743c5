"""Dropout masks that cost little: a byte is drawn for each element, and drawn again for the backward pass."""

from __future__ import annotations

import threading
import weakref

import torch

BYTES = 256  # what a byte can be


class Mask:
    """A dropout mask of one shape, known by its seed: `values` draws it anew each time, always alike.

    The rate is that of bytes, a multiple of 1/256; what is kept is scaled up by just that, so the mean is exact.
    The seed comes from torch's own generator, so `torch.manual_seed`, a resumed run's state and gradient checkpointing
    give the same masks again.
    """

    def __init__(self, like: torch.Tensor, p: float) -> None:
        self.shape, self.device = like.shape, like.device
        self.kept = round(BYTES * (1 - p))
        self.seed = int(torch.randint(2**62, ()))
        self.scale = BYTES / self.kept if self.kept else 0.0

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Return 1 where an element stays and 0 where it doesn't: (rows, size)."""
        drawn = _drawn(self)
        if drawn.values is None or drawn.values.dtype != dtype:
            generator = torch.Generator(self.device).manual_seed(self.seed)
            bytes_ = random_bytes(self.shape.numel(), self.device, generator)
            values = as_numbers(bytes_, self.kept, dtype)
            drawn.values = values.view(-1, self.shape[-1])
        return drawn.values

    def keep(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the input's rows with what is dropped at zero, the rest as it is: the caller multiplies by `scale`."""
        drawn = _drawn(self)
        if drawn.rows is None or drawn.rows.dtype != rows.dtype:
            drawn.rows = rows * self.values(rows.dtype)
        return drawn.rows

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with what is dropped at zero and the rest scaled up."""
        # scaled by a number, not by a tensor of x's dtype: in bf16 that would be off by a third of a per cent
        return (x * self.values(x.dtype).view_as(x)).mul_(self.scale)


def random_bytes(count: int, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return so many random bytes, (count,); without a generator of torch's own."""
    # eight bytes a draw; without bounds `random_` leaves out the sign bit, and every eighth byte would be small
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:count]


def as_numbers(drawn: torch.Tensor, kept: int, dtype: torch.dtype) -> torch.Tensor:
    """Return 1 where a byte is less than `kept` and 0 where it isn't, (count,)."""
    # straight into numbers: on a CPU, booleans and what is multiplied by them take ten times as long
    return torch.lt(drawn, kept, out=torch.empty(drawn.shape, dtype=dtype, device=drawn.device))


class _Drawn:
    """What was drawn last: the layers that share a mask run one after the other, in forward as in backward."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.values: torch.Tensor | None = None
        self.rows: torch.Tensor | None = None


_last = threading.local()


def _drawn(mask: Mask) -> _Drawn:
    drawn = getattr(_last, "drawn", None)
    if drawn is None or drawn.mask is not mask:
        drawn = _last.drawn = _Drawn(mask)
    return drawn


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
