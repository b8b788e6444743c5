"""Several wrappers around one linear: peft's tuner layers, each with the next one, or the linear, as `base_layer`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D


@contextlib.contextmanager
def laid_bare(model: nn.Module, paths: list[str], own: type) -> Iterator[None]:
    """Take wrappers of other classes than `own` off, and put them around what is there in the end.

    So a new wrapper is innermost, where every method of peft can work, and does the same whatever came before.
    """
    aside: list[tuple[str, Any, Any]] = []
    for path in paths:
        others = list(itertools.takewhile(lambda wrapper: not isinstance(wrapper, own), _wrappers(model, path)))
        if others:
            aside.append((path, others[0], others[-1]))
            _put(model, path, others[-1].base_layer)
    try:
        yield
    finally:
        for path, outermost, innermost in aside:
            innermost.base_layer = model.get_submodule(path)
            _put(model, path, outermost)


def passed_over(model: nn.Module, path: str, layer: nn.Module) -> bool:
    """Whether a wrapper around `layer` computes with the linear's weight alone, whatever else lies between."""
    around = itertools.takewhile(lambda wrapper: wrapper is not layer, _wrappers(model, path))
    return any(not _passes_on(wrapper) for wrapper in around)


def active_at(model: nn.Module, path: str) -> set[str]:
    """Return the adapters, of any tuner method, that are active at the linear around which the wrapper `path` lies."""
    active: set[str] = set()
    for layer in _wrappers(model, path.split(".base_layer")[0]):
        if not layer._disable_adapters:
            active |= set(layer.active_adapters) & set(layer._all_available_adapter_names())
    return active


def features(module: Any) -> tuple[int, int]:
    """Return how many features a module reads and gives; a norm has as many as its weight."""
    shape = module.weight.shape
    return (shape[0], shape[-1]) if isinstance(module, Conv1D) or len(shape) == 1 else (shape[1], shape[0])


def try_out(layer: Any) -> torch.Tensor:
    """Run a wrapper on one token of ones, in eval mode; it raises what it would raise later."""
    weight, training = layer.get_base_layer().weight, layer.get_base_layer().training
    x = torch.ones(1, 1, features(layer.get_base_layer())[0], dtype=weight.dtype, device=weight.device)
    layer.eval()
    try:
        with torch.no_grad():
            output: torch.Tensor = layer(x)
            return output
    finally:
        layer.train(training)


def _passes_on(layer: Any) -> bool:
    """Whether a wrapper's output depends on the output of what it wraps."""
    before = try_out(layer)
    hook = layer.base_layer.register_forward_hook(lambda module, args, output: output + 1)
    try:
        return float((try_out(layer) - before).abs().max()) > 0.1  # more than rounding
    finally:
        hook.remove()


def _wrappers(model: nn.Module, path: str) -> Iterator[Any]:
    """Yield the wrappers around a module, the outermost first."""
    layer: Any = model.get_submodule(path)
    while isinstance(layer, BaseTunerLayer):
        yield layer
        layer = layer.base_layer


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
