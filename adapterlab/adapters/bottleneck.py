"""Bottleneck adapters: a small two-layer network beside or behind each sublayer (Houlsby, Pfeiffer, He)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AliasChoices, Field
from torch import nn
from transformers.activations import ACT2FN

from adapterlab.adapters.base import Method, MethodConfig, register_method
from adapterlab.backbones import Backbone


class Published(NamedTuple):
    """What a paper fixed. Options that a user leaves out take these values."""

    places: tuple[str, ...]
    reduction_factor: float
    activation: str
    init: str
    scaling: float | Literal["learned"]


# s is a sublayer's output after dense and dropout, r its residual, LN the frozen LayerNorm that follows
VARIANTS = {
    # LN(up(f(down(s))) + s + r), after attention and after the FFN
    "houlsby": Published(("attention", "ffn"), 16, "swish", "bert", 1.0),
    # LN(up(f(down(LN(s + r)))) + s + r), after the FFN
    "pfeiffer": Published(("ffn",), 16, "relu", "bert", 1.0),
    # LN(4 up(f(down(r))) + s + r), beside the FFN
    "parallel": Published(("ffn",), 2, "relu", "lora", 4.0),
    "scaled_parallel": Published(("ffn",), 2, "relu", "lora", "learned"),
}


class BottleneckConfig(MethodConfig):
    """Options of bottleneck adapters. What is left out is as the variant's paper has it."""

    variant: Literal["houlsby", "pfeiffer", "parallel", "scaled_parallel"] = Field(
        "pfeiffer",
        description="'pfeiffer' (2020), 'houlsby' (2019), 'parallel' or 'scaled_parallel' (He et al. 2021)",
    )
    reduction_factor: float | None = Field(
        None, ge=1, description="hidden size / bottleneck size: 16, or 2 for the parallel ones"
    )
    bottleneck_size: int | None = Field(None, ge=1, description="the size itself, instead of reduction_factor")
    activation: str | None = Field(
        None,
        validation_alias=AliasChoices("activation", "non_linearity"),
        description="f, a transformers activation: relu, swish, gelu, ...",
    )
    init: Literal["bert", "lora"] | None = Field(
        None,
        validation_alias=AliasChoices("init", "init_weights"),
        description="'bert': N(0, 0.02), zero bias; 'lora': Kaiming down, zero up, so that it starts as nothing",
    )
    scaling: float | Literal["learned"] | None = Field(None, description="factor on the output, or 'learned'")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's output")
    layers: Annotated[list[int], Field(min_length=1)] | None = Field(
        None, description="indices of the layers to adapt, negative from the top; all if left out"
    )

    def model_post_init(self, context: Any) -> None:
        """Refuse what contradicts itself."""
        if self.reduction_factor is not None and self.bottleneck_size is not None:
            raise ValueError("reduction_factor and bottleneck_size both set the size; give one of them.")
        if self.activation is not None and self.activation not in ACT2FN:
            raise ValueError(f"activation '{self.activation}' is unknown; for example: relu, gelu, swish, tanh, silu.")


class Bottleneck(nn.Module):
    """`scaling * up(f(down(x)))`: (..., hidden) to (..., hidden), in the adapter's own dtype."""

    def __init__(self, hidden: int, config: BottleneckConfig) -> None:
        super().__init__()
        paper = VARIANTS[config.variant]
        self.variant = config.variant
        size = config.bottleneck_size or max(1, int(hidden / (config.reduction_factor or paper.reduction_factor)))
        scaling = paper.scaling if config.scaling is None else config.scaling
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, hidden)
        self.activation = ACT2FN[config.activation or paper.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.scaling: nn.Parameter | float = (
            nn.Parameter(torch.tensor([4.0])) if scaling == "learned" else float(scaling)
        )
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            nn.init.normal_(linear.weight, std=0.02)
        if (config.init or paper.init) == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
            nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the adapter's term, in x's dtype."""
        y = self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return (self.dropout(y) * self.scaling).to(x.dtype)


class Place:
    """Forward hook on the module whose output is s: adds the active adapters' terms to s.

    What the adapters read may pass elsewhere in the layer; a `Tap` on the module that reads it keeps it for the
    moment between the two. The hook adds nothing when no adapter of its variant is active.
    """

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.active: list[str] = []
        self.residual: torch.Tensor | None = None

    def adapters(self, module: nn.Module) -> list[Bottleneck]:
        """Return the active adapters that stand here."""
        here: Any = module.bottleneck_adapter
        return [here[name] for name in self.active]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        adapters = self.adapters(module)
        if not adapters:
            return output
        s = output[0] if isinstance(output, tuple) else output
        r, self.residual = self.residual, None
        if r is None:  # houlsby has no tap: it reads s
            reads = s
        elif self.variant == "pfeiffer":
            reads = s + r
        else:
            reads = r
        total = s + sum(adapter(reads) for adapter in adapters)
        return (total, *output[1:]) if isinstance(output, tuple) else total


class PostNormPlace(Place):
    """Forward hook on a LayerNorm that reads s + r: LN(up(f(down(LN(s + r)))) + s + r)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        adapters = self.adapters(module)
        return module.forward(args[0] + sum(adapter(output) for adapter in adapters)) if adapters else output


class Tap:
    """Forward pre-hook on the module that reads the residual: hands it to the place, if that needs it."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.place.active:
            self.place.residual = args[0] if args else next(iter(kwargs.values()))


@register_method("bottleneck", aliases=("adapter",))
class BottleneckMethod(Method):
    """Bottleneck adapters: Houlsby et al. 2019, Pfeiffer et al. 2020, He et al. 2021, as `VARIANTS` says.

    On pre-norm layers (GPT-2, Llama) there is no LayerNorm behind the sum: houlsby gives `A(s) + s + r`,
    pfeiffer `A(s + r) + s + r`, parallel `A(r) + s + r` with r before its LayerNorm.
    """

    summary = "two small layers behind (Houlsby, Pfeiffer) or beside (He) each sublayer"
    paper = (
        "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247; "
        "He et al. 2021, arXiv:2110.04366"
    )
    Config = BottleneckConfig
    peft_type = "BOTTLENECK"
    marker = "bottleneck_adapter"

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: BottleneckConfig) -> None:
        """Put a `Bottleneck` beside each place, and a hook that adds its term."""
        config_of_model: Any = model.config
        hidden = config_of_model.get_text_config().hidden_size
        for layer in backbone.pick_layers(config.layers):
            for sublayer in VARIANTS[config.variant].places:
                path = self._hook_path(backbone, layer, sublayer, config.variant)
                module = model.get_submodule(path)
                if not hasattr(module, "bottleneck_adapter"):
                    module.add_module("bottleneck_adapter", nn.ModuleDict())
                if not any(
                    isinstance(h, Place) and h.variant == config.variant for h in module._forward_hooks.values()
                ):
                    self._hook(model, backbone, layer, sublayer, config.variant, module)
                adapter = Bottleneck(hidden, config)
                adapter.to(next(model.get_submodule(backbone.layers[layer]).parameters()).device)
                adapters: Any = module.bottleneck_adapter
                adapters[name] = adapter

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the adapter; hooks go with the last one of their place."""
        for module in [m for m in model.modules() if "bottleneck_adapter" in m._modules]:
            adapters: Any = module.bottleneck_adapter
            if name in adapters:
                del adapters[name]
            if not len(adapters):
                del module.bottleneck_adapter
                _drop(module._forward_hooks, Place)
        if not any("bottleneck_adapter" in m._modules for m in model.modules()):
            for module in model.modules():
                for key in _drop(module._forward_pre_hooks, Tap):
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Tell the hooks which adapters to add."""
        for module in model.modules():
            for hook in module._forward_hooks.values():
                if isinstance(hook, Place):
                    here: Any = module.bottleneck_adapter
                    hook.active = [name for name in names if name in here and here[name].variant == hook.variant]

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: BottleneckConfig) -> dict[str, Any]:
        """Return the options; peft has no such method, so the fields are ours."""
        return config.model_dump(exclude={"modules_to_save"}, exclude_none=True)

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read the options back."""
        return {key: value for key, value in fields.items() if key in BottleneckConfig.model_fields}

    def _hook_path(self, backbone: Backbone, layer: int, sublayer: str, variant: str) -> str:
        on_norm = variant == "pfeiffer" and backbone.known().post_norm
        return backbone.at(layer, f"{sublayer}_{'norm' if on_norm else 'out'}")

    def _hook(
        self, model: nn.Module, backbone: Backbone, layer: int, sublayer: str, variant: str, module: nn.Module
    ) -> None:
        post_norm = backbone.known().post_norm
        if variant == "pfeiffer" and post_norm:
            module.register_forward_hook(PostNormPlace(variant))
            return
        place = Place(variant)
        if variant != "houlsby":
            reader = model.get_submodule(backbone.at(layer, "ffn_in" if post_norm else f"{sublayer}_norm"))
            reader.register_forward_pre_hook(Tap(place), with_kwargs=True)
        module.register_forward_hook(place)


def _drop(hooks: Any, kind: type) -> list[int]:
    keys = [key for key, hook in hooks.items() if isinstance(hook, kind)]
    for key in keys:
        del hooks[key]
    return keys
