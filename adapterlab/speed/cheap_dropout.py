"""Have a backbone's own dropout drawn in bytes: by floats, torch spends a seventh of a CPU's step on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from adapterlab.kernels.dropout import dropout


@contextmanager
def cheap_dropout(model: nn.Module) -> Iterator[int]:
    """Let the dropout modules draw bytes inside the `with` block, on a CPU; yield how many do.

    Rate, mean and independence are as ever; the masks are others than torch's at the same seed.
    """
    modules: list[Any] = [m for m in model.modules() if type(m) is nn.Dropout and "forward" not in m.__dict__]
    for module in modules:
        module.forward = partial(_forward, module)
    try:
        yield len(modules)
    finally:
        for module in modules:
            del module.__dict__["forward"]


def _forward(module: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    draws = module.training and 0 < module.p < 1 and x.is_floating_point()
    if not draws or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, module.p, module.training, module.inplace)
    return dropout(x, module.p)
