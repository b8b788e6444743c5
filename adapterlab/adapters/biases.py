"""Biases of the backbone that an adapter trains: its own copies, lent to the modules while they run.

A copy lies in the module whose bias it stands for, as `lora_biases.NAME`, in fp32. Hooks put it in the bias's place
for the length of a forward pass only, so the backbone's own bias is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from adapterlab.adapters.targets import plain

_COPIES = "lora_biases"


def copy_biases(modules: Iterable[nn.Module], name: str) -> int:
    """Give an adapter its copies of these modules' biases; what is tied stays tied. Return how many there are."""
    copies: dict[int, nn.Parameter] = {}
    for module in modules:
        bias = module._parameters.get("bias")
        if bias is None:
            continue
        copy = copies.setdefault(id(bias), nn.Parameter(bias.detach().float().clone()))
        if _COPIES not in module._modules:
            module.add_module(_COPIES, nn.ParameterDict())
        _copies(module)[name] = copy
    return len(copies)


def saved_biases(model: nn.Module, name: str, adapted: Callable[[], Iterable[str]]) -> dict[str, nn.Parameter]:
    """Return an adapter's copies by the keys that peft gives them.

    Args:
        adapted: gives the paths of the modules that the adapter wraps; peft finds their biases in `base_layer`.
    """
    copies = {plain(path): _copies(module)[name] for path, module in _owners(model) if name in _copies(module)}
    wrapped = set(adapted()) if copies else set()
    return {f"{path}.base_layer.bias" if path in wrapped else f"{path}.bias": copy for path, copy in copies.items()}


def lend_biases(model: nn.Module, names: list[str]) -> None:
    """Let the modules run with the copies of these adapters; where several have one, with the last one's."""
    owners = [owner for _, owner in _owners(model)]
    if not owners:  # and so no hooks: they go with the copies
        return
    _take_off_hooks(model)
    hosts: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            hosts.setdefault(module.get_base_layer(), module)  # the outermost: DoRA reads the bias from outside
    for owner in owners:
        having = [name for name in names if name in _copies(owner)]
        if having:
            host = hosts.get(owner, owner)
            host.register_forward_pre_hook(_Lend(having[-1]))
            host.register_forward_hook(_TakeBack(), always_call=True)


def forget_biases(model: nn.Module, name: str) -> None:
    """Remove an adapter's copies."""
    for _, owner in list(_owners(model)):
        copies = _copies(owner)
        if name in copies:
            del copies[name]
        if not len(copies):
            del owner._modules[_COPIES]
    _take_off_hooks(model)


def merge_biases(model: nn.Module, name: str) -> None:
    """Make an adapter's copies the backbone's biases."""
    for _, owner in _owners(model):
        bias: Any = owner._parameters["bias"]
        if name in _copies(owner):
            bias.data = _copies(owner)[name].detach().to(bias.dtype, copy=True)


class _Lend:
    """Forward pre-hook of a module with a copy, or of the wrapper around it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: Any) -> None:
        owner = _owner(module)
        bias: Any = owner._parameters["bias"]
        # found before what is registered as a parameter
        owner.__dict__["bias"] = _copies(owner)[self.name].to(bias.dtype)


class _TakeBack:
    """Forward hook that ends the loan, also if forward failed."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        _owner(module).__dict__.pop("bias", None)


def _owner(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if _COPIES in module._modules:
            yield path, module


def _copies(module: nn.Module) -> Any:
    return module._modules[_COPIES]


def _take_off_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Lend | _TakeBack)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
                _owner(module).__dict__.pop("bias", None)
