"""A method that is no part of adapterlab: a learned scale of each output feature of the linears."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import nn

from adapterlab.adapters import Backbone, Layers, Method, MethodConfig, Targets, find_targets, register_method


class OutputScaleConfig(MethodConfig):
    """The options, each with its type, default, bounds and a line of help: `attach`, recipes and the CLI read them."""

    target_modules: Targets = Field("all-linear", description="'all-linear' or a list of name endings")
    layers: Layers = Field(None, description="indices of the layers to adapt, negative from the top; all if left out")
    limit: float = Field(0.5, gt=0, description="g stays within -limit and limit")


class Scale:
    """Forward hook on a linear. A class of its own, so that it can be found again and is copied with the model."""

    def __init__(self) -> None:
        self.active: list[str] = []

    def __call__(self, linear: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Return (1 + g) * output, for each active adapter's g."""
        for name in self.active:
            output = (output * (1 + linear.output_scale[name])).to(output.dtype)
        return output


@register_method("output_scale")
class OutputScale(Method):
    """`y = (1 + g) * (W x + b)`: g is (out,), one number per output feature, and starts at zero."""

    summary = "a learned scale of each output feature of the linears"
    paper = "in the manner of IA3, Liu et al. 2022, arXiv:2205.05638"
    Config = OutputScaleConfig
    peft_type = "OUTPUT_SCALE"
    marker = "output_scale"  # g's path: ...query.output_scale.default
    merges = True

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: OutputScaleConfig) -> None:
        """Give each target a g of this name, and a hook if it has none yet."""
        for target in find_targets(model, backbone, config.target_modules, config.layers, config.modules_to_save):
            linear: Any = target.module
            if not hasattr(linear, self.marker):
                linear.add_module(self.marker, nn.ParameterDict())
                linear.register_forward_hook(Scale())
            features = linear.out_features if isinstance(linear, nn.Linear) else linear.nf  # GPT-2's Conv1D
            linear.output_scale[name] = nn.Parameter(torch.zeros(features, device=linear.weight.device))

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out g; the hook goes with the last one."""
        for linear in self._linears(model):
            if name in linear.output_scale:
                del linear.output_scale[name]
            if not len(linear.output_scale):
                del linear.output_scale
                for key in [key for key, hook in linear._forward_hooks.items() if isinstance(hook, Scale)]:
                    del linear._forward_hooks[key]

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Tell the hooks which adapters count."""
        for linear in self._linears(model):
            for hook in linear._forward_hooks.values():
                if isinstance(hook, Scale):
                    hook.active = [name for name in names if name in linear.output_scale]

    def on_train_step(self, model: nn.Module, name: str, config: OutputScaleConfig) -> None:
        """Keep g within its limit; called after each optimizer step, in whatever loop."""
        with torch.no_grad():
            for g in self.parameters(model, name).values():
                g.clamp_(-config.limit, config.limit)

    def merge(self, model: nn.Module, name: str, config: OutputScaleConfig) -> None:
        """Fold g into weight and bias: (1 + g) * (W x + b) = ((1 + g) W) x + (1 + g) b."""
        for linear in self._linears(model):
            if name in linear.output_scale:
                scale = 1 + linear.output_scale[name].detach().float()
                rows = scale[:, None] if isinstance(linear, nn.Linear) else scale  # Conv1D's weight is (in, out)
                for parameter, factor in ((linear.weight, rows), (linear.bias, scale)):
                    if parameter is not None:
                        parameter.data = (parameter.data.float() * factor).to(parameter.dtype)

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: OutputScaleConfig) -> dict[str, Any]:
        """Return the fields of adapter_config.json. peft has no such method, so they are the options."""
        return config.model_dump(exclude={"modules_to_save"})

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read the options back."""
        return {option: fields[option] for option in ("target_modules", "layers", "limit")}

    def _linears(self, model: nn.Module) -> list[Any]:
        return [module for module in model.modules() if self.marker in module._modules]
