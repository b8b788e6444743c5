"""Methods of peft that need more than targets and options: (IA)³, BOFT, Lily, OSF."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import peft
import torch
from pydantic import Field
from torch import nn

from adapterlab.adapters.patterns import matches
from adapterlab.adapters.peft_method import PeftMethod
from adapterlab.adapters.peft_options import PeftMethodConfig
from adapterlab.adapters.peft_seats import view_of
from adapterlab.adapters.targets import ALL_LINEAR, Targets, find_targets, name_endings
from adapterlab.backbones import Backbone, Found
from adapterlab.errors import BackboneError, did_you_mean

# What the projections to keys and values are called, alone or in one with the queries.
_KEYS_AND_VALUES = {
    "key", "value", "k", "v", "k_proj", "v_proj", "k_lin", "v_lin", "key_proj", "value_proj", "in_proj",
    "c_attn", "query_key_value", "qkv_proj", "Wqkv", "kv_proj", "qkv",
}  # fmt: skip


class Ia3Options(PeftMethodConfig):
    """Options of (IA)³."""

    target_modules: Annotated[Literal["all-linear"] | list[str] | None, *Targets.__metadata__] = Field(  # type: ignore
        None, description="'all-linear', name endings or globs; if left out keys, values and the FFN, as published"
    )
    feedforward_modules: list[str] | None = Field(
        None,
        description="name endings of those whose input is scaled, not their output; if left out the last linear of "
        "each FFN",
    )


class Ia3Method(PeftMethod):
    """(IA)³: keys and values are scaled, and the inner activations of the FFN: Liu et al. 2022, section 3.3."""

    def find(self, model: nn.Module, backbone: Backbone, config: Any) -> list[Found]:
        """Return keys, values and the FFNs' last linears, or what was asked for."""
        if config.target_modules is not None:
            return super().find(model, backbone, config)
        linears = find_targets(model, backbone, ALL_LINEAR, config.layers, config.modules_to_save)
        inner = _ffn_ends(backbone, linears)
        published = [
            linear for linear in linears if linear.path in inner or linear.path.split(".")[-1] in _KEYS_AND_VALUES
        ]
        return published if len(published) > len(inner) else linears  # names that we don't know: every linear

    def settings(self, model: nn.Module, backbone: Backbone, config: Any, targets: list[Found]) -> peft.PeftConfig:
        """Say which targets belong to the FFN, in names that are also among the targets'."""
        settings: Any = super().settings(model, backbone, config, targets)
        paths = {target.path for target in targets}
        asked = config.feedforward_modules
        if asked is None:
            inner = paths & _ffn_ends(backbone, find_targets(model, backbone, ALL_LINEAR, None, []))
        else:
            inner = {path for path in paths if any(matches(ending, path) for ending in asked)}
            lost = [ending for ending in asked if not any(matches(ending, path) for path in inner)]
            if lost:
                names = {path.rsplit(".", 1)[-1] for path in paths}
                raise BackboneError(
                    f"feedforward_modules: {lost} are not among the target_modules.{did_you_mean(lost[0], names)}"
                )
        endings = name_endings(model, backbone, inner) if inner else []
        if not set(endings) <= set(settings.target_modules):
            endings, settings.target_modules = sorted(inner), sorted(paths)
        settings.feedforward_modules = endings
        return settings

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields; a scale of the input is a row."""
        shapes = {key: t.shape for key, t in keys.items() if ".ia3_l" in key} if isinstance(keys, Mapping) else {}
        rows = sorted({key.split(".ia3_l")[0] for key, shape in shapes.items() if len(shape) == 2 and shape[0] == 1})
        return super().from_peft(fields, keys) | {"feedforward_modules": rows}


def _ffn_ends(backbone: Backbone, linears: list[Found]) -> set[str]:
    """Return, for each layer, the last linear outside attention: its input is the FFN's inner activation."""
    ends: dict[str, str] = {}
    for path, _ in linears:
        layer = next((layer for layer in backbone.layers if path.startswith(layer + ".")), None)
        if layer is not None and "att" not in path.removeprefix(layer).lower():
            ends[layer] = path
    return set(ends.values())


class BoftMethod(PeftMethod):
    """BOFT: products of butterfly matrices, Liu et al. 2023, arXiv:2311.06243."""

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Let peft wrap the targets; without its CUDA extension it takes one factor whatever was asked."""
        super().inject(model, backbone, name, config)
        asked = config.boft_n_butterfly_factor
        if any(len(layer.boft_R[name]) != asked for layer in self.own_layers(model, name).values()):
            raise BackboneError(
                f"boft_n_butterfly_factor: {asked} needs peft's CUDA extension, which can't be built here. "
                "Leave it out, or install a CUDA toolkit with nvcc."
            )


class LilyMethod(PeftMethod):
    """Lily: layers share what projects up, Zhong et al. 2024, arXiv:2407.09946."""

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Let equal places in the layers share, also where peft, given a choice of layers, finds no equal names."""
        super().inject(model, backbone, name, config)
        inside = [(path, layer) for path in self.own_layers(model, name) for layer in backbone.layers]
        places = {path.removeprefix(layer + ".") for path, layer in inside if path.startswith(layer + ".")}
        with view_of(model, self.name) as view:
            settings = copy.copy(view.peft_config[name])
            settings.target_modules = sorted(places, key=len)
            view.base_model._post_injection_hook(model, settings, name)


class OsfMethod(PeftMethod):
    """OSF keeps gradients out of the large singular directions: Nayak et al. 2025, arXiv:2504.07097.

    peft does that by hooks on the parameters, which a copied model doesn't have. Doing it again changes nothing.
    """

    def before_step(self, model: nn.Module, name: str, config: Any) -> None:
        """Project the gradients of the small directions' vectors onto what the large ones leave."""
        for layer in self.layers(model).values():
            if name in layer.osf_svd_params:
                u, v = layer.osf_svd_params[name]["U_low"], layer.osf_svd_params[name]["V_low"]
                if u.grad is not None:
                    u.grad = _without(u.grad, layer, "U", name, lambda columns: columns)
                if v.grad is not None:
                    v.grad = _without(v.grad.T, layer, "V", name, lambda rows: rows.T).T


def _without(gradient: torch.Tensor, layer: Any, side: str, name: str, turn: Callable[[Any], Any]) -> torch.Tensor:
    """Return the gradient without its part along the large directions.

    Where peft doesn't keep those, they and the small ones' start span everything, and what lies in that is left.
    """
    kept = getattr(layer, f"_osf_{side}_high")
    if name in kept:
        high = turn(kept[name])
        return gradient - high @ (high.T @ gradient)
    low = turn(getattr(layer, f"_osf_{side}_low_init")[name])
    return low @ (low.T @ gradient)
