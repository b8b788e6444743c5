"""Which linear modules a low-rank method adapts: every one in the layers, or those whose names end as asked."""

from __future__ import annotations

from torch import nn

from adapterlab.backbones import LINEAR, Backbone, Found
from adapterlab.errors import BackboneError, did_you_mean

ALL_LINEAR = "all-linear"


def find_targets(
    model: nn.Module, backbone: Backbone, wanted: str | list[str], layers: list[int] | None
) -> list[Found]:
    """Return the modules to adapt, in the model's order.

    Args:
        wanted: "all-linear" (every linear inside the layers; not the pooler, not a head), or name endings:
            `["query", "value"]`, `["attention.output.dense"]`.
        layers: indices of the layers to use; None for all.

    Raises:
        BackboneError: nothing matches, or a name ending matches nothing.
    """
    picked = None if layers is None else backbone.pick_layers(layers)
    inside = list(backbone.linears(model, picked))
    if isinstance(wanted, str):
        if wanted != ALL_LINEAR:
            raise BackboneError(
                f"target_modules: {wanted!r} is neither '{ALL_LINEAR}' nor a list of name endings such as "
                f"{_endings(backbone, inside)[:2]}."
            )
        if not inside:
            raise BackboneError(f"no linear module was found in the layers of this {backbone.model_type}.")
        return inside
    everywhere = inside if picked is not None else _all_linears(model, backbone)
    found = [target for target in everywhere if any(_ends(target.path, ending) for ending in wanted)]
    unmatched = [e for e in wanted if not any(_ends(target.path, e) for target in found)]
    if unmatched or not found:
        known = _endings(backbone, inside)
        short = [name.rsplit(".", 1)[-1] for name in known]
        raise BackboneError(
            f"target_modules: {unmatched or wanted} match no linear module of this {backbone.model_type}."
            f"{did_you_mean(unmatched[0] if unmatched else '', [*short, *known])} "
            f"Its layers have: {', '.join(known)}."
        )
    return found


def name_endings(model: nn.Module, backbone: Backbone, targets: list[Found]) -> list[str]:
    """Return the shortest way to say `targets`: endings relative to a layer if they name nothing else, else paths."""
    paths = {target.path for target in targets}
    relative = sorted({_relative(backbone, path) for path in paths})
    matched = {t.path for t in _all_linears(model, backbone, heads=True) if any(_ends(t.path, r) for r in relative)}
    return relative if matched == paths else sorted(paths)


def _all_linears(model: nn.Module, backbone: Backbone, heads: bool = False) -> list[Found]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LINEAR) or (not heads and name.split(".")[0] in backbone.heads):
            continue
        if ".lora_" not in name and ".bottleneck." not in name and "prefix_encoder" not in name:
            found[name.removesuffix(".base_layer")] = module
    return [Found(path, module) for path, module in found.items()]


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith("." + ending)


def _relative(backbone: Backbone, path: str) -> str:
    return next((path.removeprefix(layer + ".") for layer in backbone.layers if path.startswith(layer + ".")), path)


def _endings(backbone: Backbone, targets: list[Found]) -> list[str]:
    return list(dict.fromkeys(_relative(backbone, target.path) for target in targets))
