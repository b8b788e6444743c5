"""Full fine-tuning as a guest: every weight of the backbone gets a copy that is trained in its place.

`detach` and `disabled` give the backbone back as with any adapter, and the adapter's file is a whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from adapterlab.adapters.base import Method, MethodConfig, register_method
from adapterlab.adapters.targets import is_inside, own_modules, plain
from adapterlab.backbones import Backbone
from adapterlab.errors import AdapterError

_COPIES = "full_weights"


class FullConfig(MethodConfig):
    """Options of full fine-tuning: none but everybody's."""


@register_method("full")
class FullMethod(Method):
    """All weights, W := W + dW with a dW of W's own size: the yardstick of every paper on adapters.

    The copies lie in the modules, as `full_weights.NAME.weight`, in fp32, also on a bf16 backbone, which then computes
    in fp32; what is tied stays tied. While the adapter is active an attribute of the module's own, `weight`, is found
    before the registered parameter of that name, so whoever reads the module's weight reads the copy. The backbone is
    kept beside it: memory for one more copy of it, beside gradients and the optimizer's two.
    """

    summary = (
        "all of the backbone's weights, in copies: full fine-tuning, for the comparison or a domain's large corpus"
    )
    Config = FullConfig
    peft_type = "FULL"
    marker = _COPIES
    merges = True
    shards = False  # a module would go on with the copy that it was given, not the part of it

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: FullConfig) -> None:
        """Give each module a copy of its own weights."""
        copies: dict[int, nn.Parameter] = {}
        for _, module, own in list(_weights(model, [*backbone.heads, *config.modules_to_save])):
            if _COPIES not in module._modules:
                module.add_module(_COPIES, nn.ModuleDict())
            mine = {k: copies.setdefault(id(p), nn.Parameter(p.detach().float().clone())) for k, p in own.items()}
            _copies(module)[name] = nn.ParameterDict(mine)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take the copies out."""
        for module in list(_owners(model)):
            copies = _copies(module)
            if name in copies:
                _step_back(module, copies[name])
                del copies[name]
            if not len(copies):
                del module._modules[_COPIES]

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Put the copies in front of the backbone's weights."""
        if len(names) > 1:
            raise AdapterError(
                f"adapters {', '.join(names)} each stand in the place of all weights, and can't be active together. "
                f"Activate one of them: activate(model, '{names[-1]}')."
            )
        for module in _owners(model):
            for copies in _copies(module).values():
                _step_back(module, copies)
            if names and names[0] in _copies(module):
                module.__dict__.update(_copies(module)[names[0]].items())

    def merge(self, model: nn.Module, name: str, config: FullConfig) -> None:
        """Make the copies the backbone's weights."""
        for module in _owners(model):
            if name in _copies(module):
                _step_back(module, _copies(module)[name])  # so that who merges next finds the backbone's
                for key, copy in _copies(module)[name].items():
                    parameter: Any = module._parameters[key]
                    parameter.data = copy.detach().to(parameter.dtype, copy=True)

    def without_head(
        self, model: nn.Module, backbone: Backbone, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Leave out what belongs to a language model's head; what that lacks (a pooler) is as the model has it."""
        found = {}
        for path, _, own in _weights(model, backbone.heads):
            for key, parameter in own.items():
                full = f"{path}.{key}"
                if full in tensors or not full.startswith(tuple(f"{layer}." for layer in backbone.layers)):
                    found[full] = tensors.get(full, parameter.detach().float())
        return found

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: FullConfig) -> dict[str, Any]:
        """Return nothing of its own: peft has no such method."""
        return {}

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read nothing back."""
        return {}

    def _key(self, path: str, name: str) -> str:
        """Return the path of the backbone's own weight."""
        return super()._key(path, name).replace(f".{_COPIES}.", ".")


def _weights(model: nn.Module, apart: Sequence[str]) -> Iterator[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
    """Yield the backbone's own modules outside of `apart` that have weights, with their paths and these."""
    for path, module in own_modules(model):
        own = {k: p for k, p in module._parameters.items() if p is not None and p.is_floating_point()}
        if own and not is_inside(plain(path), apart):
            yield plain(path), module, own


def _owners(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if _COPIES in module._modules)


def _copies(module: nn.Module) -> Any:
    return module._modules[_COPIES]


def _step_back(module: nn.Module, copies: Any) -> None:
    """Let the module find its registered weights again, if these copies stand before them."""
    for key, copy in copies.items():
        if module.__dict__.get(key) is copy:
            del module.__dict__[key]
