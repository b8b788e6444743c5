"""Dropout masks that cost little: a byte is drawn for each element, and drawn again for the backward pass.

What reads a mask is given ones and zeros, and scales up what is kept by itself, where that is cheap.
"""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np
import torch

BYTES = 256  # what a byte can be


class Mask:
    """A dropout mask of one shape, known by its seed: `values` draws it anew each time, always alike.

    The seed comes from torch's own generator, so `torch.manual_seed`, a resumed run's state and gradient checkpointing
    give the same masks again.
    """

    def __init__(self, like: torch.Tensor, p: float) -> None:
        self.shape, self.device = like.shape, like.device
        self.kept = kept_of(p)
        self.seed = new_seed()
        self.scale = BYTES / self.kept if self.kept else 0.0

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Return 1 where an element stays and 0 where it doesn't: (rows, size)."""
        drawn = _drawn(self)
        if drawn.values is None or drawn.values.dtype != dtype:
            values = drawn_bytes(self.shape.numel(), self.kept, self.device, self.seed).to(dtype)
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


def kept_of(p: float) -> int:
    """Return how many of a byte's 256 values stay at a rate of p: the number below or the one above, by chance.

    So the rate is p over many masks, and none is off by more than 1/256. Scaled up by just what is kept, the mean is
    exact for each.
    """
    return math.floor(BYTES * (1 - p) + torch.rand(()).item())


def new_seed() -> int:
    """Draw a mask's seed from torch's own generator."""
    return int(torch.randint(2**62, ()))


def drawn_bytes(count: int, kept: int, device: torch.device, seed: int) -> torch.Tensor:
    """Return bytes that are 1 in `kept` of 256 cases and else 0, (count,); the same for the same seed.

    To be multiplied by, they are made numbers first: on a CPU, a product with bytes takes ten times as long.
    """
    words = (count + 7) // 8
    if device.type == "cpu":  # NumPy's smallest generator draws in half of the time that torch's takes
        drawn = torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.uint8))
    else:
        random = torch.empty(words, dtype=torch.int64, device=device)
        # without bounds `random_` leaves out the sign bit, and every eighth byte would be small
        drawn = random.random_(-(2**63), None, generator=torch.Generator(device).manual_seed(seed)).view(torch.uint8)
    drawn = drawn[:count]
    return drawn.le_(kept - 1) if kept else drawn.zero_()  # 256 itself, or -1, would be another byte


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
    # a checkpoint that computes forward again in backward draws again, too, or what follows would draw something else
    about = (x._version, p, torch._C._current_graph_task_id())
    last = getattr(_last, "mask", None)
    if last is not None:
        reference, what, mask = last
        if reference() is x and what == about:
            found: Mask = mask
            return found
    mask = Mask(x, p)
    _last.mask = (weakref.ref(x), about, mask)
    return mask
