"""Methods whose layers are peft's: inject, remove and switch them in place."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import AliasChoices, Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.adapters.base import Method
from adapterlab.adapters.patterns import chosen, matches
from adapterlab.adapters.targets import Kinds, TargetConfig, find_targets, name_endings, plain
from adapterlab.backbones import LINEAR, Backbone, Found
from adapterlab.errors import ConfigError, did_you_mean

T = TypeVar("T")


_OVERSIZED = 64  # times a layer's smaller side: so much may have been concatenated out of several adapters


class TunerConfig(TargetConfig):
    """Options that low-rank methods share."""

    alpha: float = Field(
        16,
        gt=0,
        validation_alias=AliasChoices("alpha", "lora_alpha"),
        description="the update is scaled by alpha / r (AdaLoRA: alpha / init_r)",
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("dropout", "lora_dropout"),
        description="dropout on the update's input",
    )
    oversized_rank: bool = Field(
        False, description="allow a rank above a layer's smaller side, where it costs and gains nothing"
    )


class TunerMethod(Method):
    """Base of methods that wrap linear modules in a peft tuner layer.

    The wrapper takes the linear's place and keeps it as `base_layer`, so `remove` puts the very same module
    back.
    """

    layer_class: type[BaseTunerLayer]
    kinds: Kinds = LINEAR  # what it can adapt
    rewires_layers = False
    merges = True

    @abstractmethod
    def peft_config(self, config: Any) -> peft.PeftConfig:
        """Return peft's config for `config`, but for the targets, which `inject` finds."""

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Wrap the target modules, or add to wrappers that other adapters put there."""
        settings = self.peft_config(config)
        targets = find_targets(
            model, backbone, config.target_modules, config.layers, config.modules_to_save, self.kinds
        )
        self.fit(settings, config, targets)
        settings.target_modules = [target.path for target in targets]
        settings.fan_in_fan_out = any(isinstance(target.module, Conv1D) for target in targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft would say here, `find_targets` has checked
            peft.inject_adapter_in_model(settings, model, name)
        # peft leaves its config on the model, which would make transformers take it for a peft model
        del model.peft_config
        for parameter in self.parameters(model, name).values():
            parameter.data = parameter.data.float()  # a bf16 backbone is fine, a bf16 optimizer step is not

    def fit(self, settings: Any, config: Any, targets: list[Found]) -> None:
        """Refuse options that don't fit the targets; write into peft's config what depends on them."""

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """Return this method's layers by path."""
        return {path: module for path, module in model.named_modules() if isinstance(module, self.layer_class)}

    def own_layers(self, model: nn.Module, name: str) -> dict[str, Any]:
        """Return the layers that hold the adapter, by the path that they have in the plain model."""
        return {plain(path): layer for path, layer in self.layers(model).items() if _holds(layer, name)}

    def remove(self, model: nn.Module, name: str) -> None:
        """Delete the adapter; a wrapper that holds no other gives its linear back."""
        model.__dict__.pop("peft_config", None)
        for path, layer in self.layers(model).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of which adapter becomes active: `activate` says so next
                layer.delete_adapter(name)
            if not layer._all_available_adapter_names():
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.base_layer)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Switch the wrappers."""
        for layer in self.layers(model).values():
            if layer.active_adapters != names:
                layer.set_adapter(names)
            layer._disable_adapters = not names

    def slow_because(self, model: nn.Module, name: str) -> str | None:
        """Return what keeps linears that have a fast forward from using it."""
        layers = [layer for layer in self.own_layers(model, name).values() if hasattr(layer, "obstacle")]
        obstacles = [obstacle for layer in layers if (obstacle := layer.obstacle(name)) is not None]
        return f"{obstacles[0]} ({len(obstacles)} of {len(layers)} linears)" if obstacles else None

    def merge(self, model: nn.Module, name: str, config: Any) -> None:
        """Add the updates to the linears' weights, in fp32."""
        for layer in self.own_layers(model, name).values():
            own = [(parameter, parameter.dtype) for parameter in layer.get_base_layer().parameters(recurse=False)]
            try:
                for parameter, _ in own:  # a copy even of fp32: peft changes some weights in place
                    parameter.data = parameter.data.to(torch.float32, copy=True)
                layer.merge(safe_merge=True, adapter_names=[name])
            finally:
                layer.merged_adapters.clear()  # the wrapper goes next, or the caller undoes it all
                for parameter, dtype in own:
                    parameter.data = parameter.data.to(dtype)

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> dict[str, Any]:
        """Return peft's own fields."""
        settings = self.peft_config(config)
        own = self.own_layers(model, name)
        fields = settings.to_dict()
        fields["target_modules"] = name_endings(model, backbone, set(own))
        fields["fan_in_fan_out"] = any(isinstance(layer.get_base_layer(), Conv1D) for layer in own.values())
        return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Take the targets from the tensors' names: peft may have found them by a regex, layers or exclusions."""
        targets = sorted({key.split(".lora_")[0] for key in keys if ".lora_" in key})
        return {"target_modules": targets, "layers": None, "oversized_rank": True}


def _holds(layer: Any, name: str) -> bool:
    """Whether the adapter is one of the layer's; peft can list them all, which takes longer."""
    attributes = (getattr(layer, attribute) for attribute in (*layer.adapter_layer_names, *layer.other_param_names))
    return any(name in attribute for attribute in attributes if hasattr(attribute, "keys"))


def check_ranks(option: str, ranks: Mapping[str, int], targets: Sequence[Found], allowed: bool = False) -> None:
    """Refuse a rank above the smaller side of a target: it would add parameters and no freedom.

    Raises:
        ConfigError: one is, and such ranks aren't allowed; or it is beyond all reason, as in a damaged file.
    """
    for path, module in targets:
        sides = tuple(int(side) for side in module.weight.shape)  # type: ignore[union-attr]
        most = min(sides) * (_OVERSIZED if allowed else 1)
        if ranks[path] > most:
            raise ConfigError(
                f"{option}: rank {ranks[path]} is larger than {f'{_OVERSIZED} times ' * allowed}the smaller side of "
                f"'{path}' ({sides[0]} x {sides[1]}): {most} at most. Lower it, or leave this module out of "
                "target_modules."
            )


def by_pattern(option: str, patterns: Mapping[str, T], targets: Sequence[Found], otherwise: T) -> dict[str, T]:
    """Return an option's value for each target: that of the first pattern which its name matches.

    Raises:
        ConfigError: a pattern matches no target.
    """
    paths = [target.path for target in targets]
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            near = did_you_mean(pattern, {path.rsplit(".", 1)[-1] for path in paths})
            raise ConfigError(f"{option}: no target's name ends with '{pattern}'.{near}")
    return {path: chosen(patterns, path, otherwise) for path in paths}
