"""Compile the backbone's layers for training, one by one: `torch.compile` of what repeats, not of the whole model.

Layers that are alike share the compiled code, so a model of 24 compiles as long as one of two. Sizes are dynamic from
the start: a batch of another length compiles nothing. LoRA's linears are peft's plain ones there, which the compiler
fuses by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterlab.errors import ConfigError
from adapterlab.guests import need_guests
from adapterlab.sharding import will_be_sharded

_VARIANTS = 64  # of a layer that may be compiled; what comes then runs uncompiled


@contextmanager
def compiled(model: nn.Module, when: bool = True, **options: Any) -> Iterator[None]:
    """Run the layers compiled inside the `with` block; names and parameters stay, and so does what `save` writes.

    Args:
        model: a model with adapters, which must not change inside.
        when: or nothing is done.
        options: for `torch.compile`, e.g. backend="aot_eager".
    """
    every = [model.get_submodule(path) for path in need_guests(model).backbone.layers] if when else []
    layers = [layer for layer in every if "forward" not in layer.__dict__]  # those replaced compute nothing
    if not layers:
        yield
        return
    # training and evaluation, the first layer and the last are compiled apart; torch gives up at eight
    with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
        try:
            for layer in layers:
                layer.compile(**{"dynamic": True} | options)
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None
            torch.compiler.reset()  # what is compiled counts for all models of the process


def check_compiler(device: str) -> None:
    """Find out whether `torch.compile` works here, by a function of one line.

    Raises:
        ConfigError: it doesn't, or the model will be sharded, whose layers gather their weights by hooks.
    """
    if will_be_sharded():
        raise ConfigError("optim.compile: not with FSDP or DeepSpeed; leave it out, or launch without them.")

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    try:
        torch.compile(tiny)(torch.ones(8, device=device))
    except Exception as error:  # of whatever the compilers behind it are made
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        needed = "a C++ compiler (g++) and Python's headers" + (", and Triton" if device == "cuda" else "")
        raise ConfigError(
            f"optim.compile: torch.compile doesn't work here: {said.strip()} It needs {needed}; "
            "install them, or leave optim.compile out."
        ) from error
