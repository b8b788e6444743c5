"""Bottleneck adapters: a small two-layer network beside or behind each sublayer (Houlsby, Pfeiffer, He)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AliasChoices, Field
from torch import nn
from transformers.activations import ACT2FN

from adapterlab.adapters.base import Method, MethodConfig, register_method
from adapterlab.adapters.bottleneck_places import BehindLayer, BehindNorm, BesideSublayer, Place, Tap
from adapterlab.backbones import Backbone, hidden_size
from adapterlab.errors import ConfigError, did_you_mean


class Published(NamedTuple):
    """What a paper fixed. Options that a user leaves out take these values."""

    where: tuple[str, ...]
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
        None, gt=0, description="hidden size / bottleneck size: 16, or 2 for the parallel ones; below 1 it widens"
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
    leave_out: list[int] = Field(
        default=[], description="indices of layers to leave out, e.g. the lowest: AdapterDrop (Rücklé et al. 2021)"
    )
    where: Annotated[list[Literal["attention", "ffn"]], Field(min_length=1)] | None = Field(
        None, description="the sublayers to adapt: attention, ffn; houlsby has both, the others ffn"
    )

    def model_post_init(self, context: Any) -> None:
        """Refuse what contradicts itself."""
        if self.reduction_factor is not None and self.bottleneck_size is not None:
            raise ValueError("reduction_factor and bottleneck_size both set the size; give one of them.")
        if self.activation is not None and self.activation not in ACT2FN:
            raise ValueError(
                f"activation '{self.activation}' is unknown.{did_you_mean(self.activation, ACT2FN)} "
                "For example: relu, gelu, swish, tanh, silu."
            )


class Bottleneck(nn.Module):
    """`scaling * up(f(down(x)))`: (..., hidden) to (..., hidden), in the adapter's own dtype."""

    def __init__(self, hidden: int, config: BottleneckConfig) -> None:
        super().__init__()
        paper = VARIANTS[config.variant]
        self.variant = config.variant
        size = config.bottleneck_size or int(hidden / (config.reduction_factor or paper.reduction_factor))
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
        y = self.dropout(y)
        if not isinstance(self.scaling, float) or self.scaling != 1.0:
            y = y * self.scaling
        return y.to(x.dtype)


@register_method("bottleneck", aliases=("adapter",))
class BottleneckMethod(Method):
    """Bottleneck adapters: Houlsby et al. 2019, Pfeiffer et al. 2020, He et al. 2021, as `VARIANTS` says.

    On pre-norm layers (GPT-2, Llama) there is no LayerNorm behind the sum: houlsby gives `A(s) + s + r`, pfeiffer
    `A(s + r) + s + r`, parallel `A(r) + s + r` with r before its LayerNorm. Behind the FFN pfeiffer's s + r is what
    the layer gives, y, so it is `y + A(y)`; that holds for GPT-NeoX too, whose attention and FFN run side by side
    and add to one sum, and it is how pfeiffer works on an architecture that is known only by its list of layers.

    OPT and BART drop s out in training by a function behind our place, and houlsby's and parallel's term with it.
    Encoder-decoders (T5, BART) are adapted on both sides, at self-attention and FFN. Cross-attention is left alone.
    ALBERT's layers share their weights and so they share their adapters: one set runs in every layer.
    """

    summary = "two small layers behind (Houlsby, Pfeiffer) or beside (He) each sublayer"
    paper = (
        "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247; "
        "He et al. 2021, arXiv:2110.04366; leave_out: Rücklé et al. 2021, arXiv:2010.11918"
    )
    Config = BottleneckConfig
    peft_type = "BOTTLENECK"
    marker = "bottleneck_adapter"

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: BottleneckConfig) -> None:
        """Put a `Bottleneck` at each place, and a hook that adds its term."""
        hidden = hidden_size(model.config)
        factor = config.reduction_factor or VARIANTS[config.variant].reduction_factor
        if config.bottleneck_size is None and factor > hidden:
            raise ConfigError(
                f"reduction_factor: {factor:g} leaves nothing of this model's hidden size {hidden}. "
                f"Take one of at most {hidden}, or give bottleneck_size."
            )
        for layer in backbone.pick_layers(config.layers, config.leave_out):
            for sublayer in dict.fromkeys(config.where or VARIANTS[config.variant].where):
                module = _open(model, backbone, layer, sublayer, config.variant)
                device = next(model.get_submodule(backbone.layers[layer]).parameters()).device
                adapters: Any = module.bottleneck_adapter
                adapters[name] = Bottleneck(hidden, config).to(device)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the adapter; hooks go with the last one of their place."""
        empty: list[Any] = []
        for module in [m for m in model.modules() if "bottleneck_adapter" in m._modules]:
            adapters: Any = module.bottleneck_adapter
            if name in adapters:
                del adapters[name]
            if not len(adapters):
                del module.bottleneck_adapter
                empty += _drop(module._forward_hooks, lambda hook: isinstance(hook, Place)).values()
        for module in model.modules():
            taps = _drop(module._forward_pre_hooks, lambda hook: isinstance(hook, Tap) and hook.place in empty)
            for key in taps:
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Tell the hooks which adapters to add."""
        for module in model.modules():
            for hook in module._forward_hooks.values():
                if isinstance(hook, Place):
                    here: Any = module.bottleneck_adapter
                    hook.active = [name for name in names if name in here]

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: BottleneckConfig) -> dict[str, Any]:
        """Return the options; peft has no such method, so the fields are ours."""
        return config.model_dump(exclude={"modules_to_save"}, exclude_none=True)

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read the options back."""
        return {key: value for key, value in fields.items() if key in BottleneckConfig.model_fields}


def _open(model: nn.Module, backbone: Backbone, layer: int, sublayer: str, variant: str) -> nn.Module:
    """Return the module at which the variant's adapter stands, with its hook and its dict of adapters."""
    path, place = find_place(backbone, layer, sublayer, variant)
    module = _plain(model, path)
    if not hasattr(module, "bottleneck_adapter"):
        module.add_module("bottleneck_adapter", nn.ModuleDict())
        # first, so that hooks which record hidden states see them as the next layer does
        module.register_forward_hook(place, prepend=True)
        if isinstance(place, BesideSublayer):
            reader = _plain(model, backbone.at(layer, f"{sublayer}_in"))
            reader.register_forward_pre_hook(Tap(place), with_kwargs=True)
    return module


def _plain(model: nn.Module, path: str) -> nn.Module:
    """Return the backbone's own module: a wrapper that another method put around it may go before us."""
    module: Any = model.get_submodule(path)
    while isinstance(getattr(module, "base_layer", None), nn.Module):
        module = module.base_layer
    return module


def find_place(backbone: Backbone, layer: int, sublayer: str, variant: str) -> tuple[str, Place]:
    """Return the path of the module at which a variant's adapter stands, and the hook that adds its term."""
    if variant == "pfeiffer":
        anatomy = backbone.anatomies[layer] if backbone.anatomies else None
        if anatomy is not None and getattr(anatomy, f"{sublayer}_norm") is not None:
            return backbone.at(layer, f"{sublayer}_norm"), BehindNorm()
        if sublayer == "ffn":
            return backbone.layers[layer], BehindLayer()
    return backbone.at(layer, f"{sublayer}_out"), BesideSublayer()


def _drop(hooks: Any, unwanted: Callable[[Any], bool]) -> dict[int, Any]:
    return {key: hooks.pop(key) for key in [key for key, hook in hooks.items() if unwanted(hook)]}
