"""Norm tuning: every norm gets weights of its own that are trained. The wrappers and the file format are peft's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn
from torch.func import functional_call

from adapterlab.adapters.patterns import check_patterns, matches
from adapterlab.adapters.peft_method import PeftMethod
from adapterlab.adapters.peft_options import PeftMethodConfig
from adapterlab.adapters.targets import is_inside, plain
from adapterlab.backbones import Backbone, Found
from adapterlab.errors import BackboneError, did_you_mean

ALL_NORMS = "all-norms"


def _check_norms(value: Any) -> Any:
    if isinstance(value, str) and value != ALL_NORMS:
        raise ValueError(f"'{ALL_NORMS}' or a list of name endings is needed, for instance ['{value}']")
    return check_patterns(value)


class LnTuningOptions(PeftMethodConfig):
    """Options of norm tuning."""

    target_modules: Annotated[Literal["all-norms"] | list[str], BeforeValidator(_check_norms)] = Field(  # type: ignore[assignment]
        "all-norms", description="'all-norms' (every norm of the backbone, or of the chosen layers) or name endings"
    )


class LnTuningMethod(PeftMethod):
    """Each norm gets a copy that is trained, Zhao et al. 2023, arXiv:2312.11420: LayerNorm or RMSNorm alike."""

    def find(self, model: nn.Module, backbone: Backbone, config: Any) -> list[Found]:
        """Return the norms to train."""
        known = {plain(path): Found(plain(path), module) for path, module in _norms(model, backbone, config)}
        if config.target_modules == ALL_NORMS:
            found = list(known.values())
        else:
            found = [norm for path, norm in known.items() if any(matches(e, path) for e in config.target_modules)]
        unmatched = [] if config.target_modules == ALL_NORMS else [
            ending for ending in config.target_modules if not any(matches(ending, norm.path) for norm in found)
        ]  # fmt: skip
        if unmatched or not found:
            names = sorted({path.rsplit(".", 1)[-1] for path in known})
            raise BackboneError(
                f"target_modules: {unmatched or config.target_modules} match no norm of this {backbone.model_type}."
                f"{did_you_mean(unmatched[0], names) if unmatched else ''} Its norms: {', '.join(names) or 'none'}."
            )
        return found

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Let peft wrap the norms, and put our copies in the place of its own."""
        super().inject(model, backbone, name, config)
        for layer in self.own_layers(model, name).values():
            layer.ln_tuning_layers[name] = TunedNorm(layer.base_layer)

    def merge(self, model: nn.Module, name: str, config: Any) -> None:
        """Write the trained values into the norms."""
        for layer in self.own_layers(model, name).values():
            for key, trained in layer.ln_tuning_layers[name].named_parameters():
                parameter = layer.base_layer.get_parameter(key)
                parameter.data = trained.data.to(parameter.dtype)


class TunedNorm(nn.Module):
    """A norm's weights, trained in fp32. They are put into the norm itself to run it, with whatever hooks it has."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach().float().clone()))
        self.__dict__["norm"] = norm  # the backbone's: no child of this module

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what the norm would, in x's dtype."""
        own: dict[str, torch.Tensor] = dict(self.named_parameters())
        x_own = x.to(next(iter(own.values())).dtype)
        normed: torch.Tensor = functional_call(self.__dict__["norm"], own, (x_own, *args), kwargs)
        return normed.to(x.dtype)


def _norms(model: nn.Module, backbone: Backbone, config: Any) -> list[Found]:
    """Return the backbone's norms that have weights: all, or those of the chosen layers."""
    inside = [backbone.layers[i] for i in backbone.pick_layers(config.layers)] if config.layers else [backbone.base]
    return [
        Found(path, module)
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and any(path.startswith(f"{start}." if start else "") for start in inside)
        and path.split(".")[0] not in backbone.heads
        and "ln_tuning_layers" not in path.split(".")
        and not is_inside(plain(path), config.modules_to_save)
    ]
