"""Which linear modules a low-rank method adapts: all those in the layers, or those whose names end as asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from adapterlab.adapters.base import METHODS
from adapterlab.backbones import LINEAR, Backbone, Found
from adapterlab.errors import BackboneError, did_you_mean

ALL_LINEAR = "all-linear"


def _check_targets(value: Any) -> Any:
    if isinstance(value, str) and value != ALL_LINEAR:
        raise ValueError(f"'{ALL_LINEAR}' or a list of name endings is needed, for instance ['{value}']")
    return sorted(value) if isinstance(value, set | tuple) else value


Targets = Annotated[Literal["all-linear"] | list[str], BeforeValidator(_check_targets)]
Layers = Annotated[list[int], Field(min_length=1)] | None


def find_targets(
    model: nn.Module, backbone: Backbone, wanted: str | list[str], layers: list[int] | None, saved: list[str]
) -> list[Found]:
    """Return the modules to adapt, in the model's order.

    Args:
        wanted: "all-linear" (every linear inside the layers; not the pooler, not a head), or name endings:
            `["query", "value"]`, `["attention.output.dense"]`.
        layers: indices of the layers to use; None for all.
        saved: name endings of modules that are trained in full; what is inside them is no target.

    Raises:
        BackboneError: nothing matches, or a name ending matches nothing.
    """
    picked = None if layers is None else backbone.pick_layers(layers)
    inside = _free(backbone.linears(model, picked), saved)
    known = list(dict.fromkeys(_relative(backbone, target.path) for target in inside))
    if wanted == ALL_LINEAR:
        if not inside:
            raise BackboneError(f"no linear module was found in the layers of this {backbone.model_type}.")
        return inside
    everywhere = inside if picked is not None else _free(_outside_heads(model, backbone), saved)
    found = [target for target in everywhere if any(_ends(target.path, ending) for ending in wanted)]
    unmatched = [e for e in wanted if not any(_ends(target.path, e) for target in found)]
    if unmatched or not found:
        names = [*(name.rsplit(".", 1)[-1] for name in known), *known]
        raise BackboneError(
            f"target_modules: {unmatched or wanted} match no linear module of this {backbone.model_type}."
            f"{did_you_mean(unmatched[0], names) if unmatched else ''} Its layers have: {', '.join(known)}."
        )
    return found


def name_endings(model: nn.Module, backbone: Backbone, paths: set[str]) -> list[str]:
    """Return the shortest way to say `paths`: endings relative to a layer if they name nothing else."""
    relative = sorted({_relative(backbone, path) for path in paths})
    linears = {plain(name) for name, module in model.named_modules() if isinstance(module, LINEAR)}
    matched = {path for path in linears if any(_ends(path, ending) for ending in relative)}
    return relative if matched == paths else sorted(paths)


def plain(path: str) -> str:
    """Return a module's path as it is without the wrappers that peft puts around linears."""
    return ".".join(part for part in path.split(".") if part != "base_layer")


def _free(linears: Iterable[Found], saved: list[str]) -> list[Found]:
    """Return the backbone's own linears: not an adapter's, not inside a module that is trained in full."""
    markers = tuple(method.marker for _, method in METHODS)
    found = {}
    for path, module in linears:
        parts = path.split(".")
        inside_saved = any(_ends(".".join(parts[: n + 1]), ending) for n in range(len(parts)) for ending in saved)
        if not inside_saved and not any(part.startswith(markers) for part in parts):
            found[plain(path)] = module
    return [Found(path, module) for path, module in found.items()]


def _outside_heads(model: nn.Module, backbone: Backbone) -> Iterable[Found]:
    for name, module in model.named_modules():
        if isinstance(module, LINEAR) and name.split(".")[0] not in backbone.heads:
            yield Found(name, module)


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith("." + ending)


def _relative(backbone: Backbone, path: str) -> str:
    return next((path.removeprefix(layer + ".") for layer in backbone.layers if path.startswith(layer + ".")), path)
