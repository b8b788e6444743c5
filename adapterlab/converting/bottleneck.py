"""Bottleneck adapters: our variants and AdapterHub's switches."""

from __future__ import annotations

from typing import Any

from adapterlab.adapters.bottleneck import VARIANTS, BottleneckConfig, find_place
from adapterlab.converting.fields import BOTTLENECK, Tensors, check, number, only, refusal, rename, typed
from adapterlab.converting.names import Architecture, Layer

_PARTS = {
    "adapter_down.0.weight": "down.weight",
    "adapter_down.0.bias": "down.bias",
    "adapter_up.weight": "up.weight",
    "adapter_up.bias": "up.bias",
}
_READ = {
    "dropout", "is_parallel", "leave_out", "mh_adapter", "non_linearity", "original_ln_before", "output_adapter",
    "reduction_factor", "residual_before_ln", "scaling",
}  # fmt: skip
_WRITTEN = {
    "activation", "bottleneck_size", "dropout", "init", "layers", "leave_out", "modules_to_save", "reduction_factor",
    "scaling", "variant", "where",
}  # fmt: skip
_PLACES = {"attention": "mh_adapter", "ffn": "output_adapter"}
_INITS = {"bert": "bert", "lora": "mam_adapter"}
_ACTIVATIONS = {"leaky_relu": "leakyrelu"}  # ours and theirs, where they differ


def to_ours(
    config: dict[str, Any], tensors: Tensors, architecture: Architecture, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return options and tensors of our method, given AdapterHub's config and tensors.

    Tensors' names are from the base model, without the adapter's name.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    config = check(config, _READ, source)
    kinds: dict[str, tuple[type, ...]] = {"dropout": (float, int), "leave_out": (list,), "non_linearity": (str,)}
    typed(config, kinds | {"scaling": (float, int, str)}, source)
    variant = _variant(config, source)
    where = [place for place, field in _PLACES.items() if config[field]]
    layers = architecture.layers(tensors)
    absent = [] if len(architecture.stacks) > 1 else architecture.left_out(layers, None)
    missing = [f"all of layer {index}" for index in absent if index not in config["leave_out"]]
    names = _names(architecture, layers, where, variant, config["scaling"] == "learned", source)
    ours = rename(tensors, names, source, missing)
    activation = config["non_linearity"].lower()
    options = {
        "variant": variant,
        **_size(config, ours, source),
        "activation": next((name for name, theirs in _ACTIVATIONS.items() if theirs == activation), activation),
        "scaling": config["scaling"],
        "dropout": config["dropout"],
        "leave_out": config["leave_out"],
    }
    return options | ({} if where == list(VARIANTS[variant].where) else {"where": where}), ours


def to_hub(
    config: BottleneckConfig, tensors: Tensors, architecture: Architecture, count: int | None, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return AdapterHub's config and tensors; `count` is the number of the backbone's layers, if it is known.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    only(config, _WRITTEN, source)
    paper = VARIANTS[config.variant]
    where = list(dict.fromkeys(config.where or paper.where))
    scaling = paper.scaling if config.scaling is None else config.scaling
    names = _names(architecture, architecture.layers(tensors), where, config.variant, scaling == "learned", source)
    theirs = rename(tensors, {ours: theirs for theirs, ours in names.items()}, source)
    size, hidden = next(tensor.shape for name, tensor in theirs.items() if name.endswith("down.0.weight"))
    factor = hidden / config.bottleneck_size if config.bottleneck_size else config.reduction_factor
    factor = number(factor or paper.reduction_factor)
    activation = config.activation or paper.activation
    return BOTTLENECK | {
        "mh_adapter": "attention" in where,
        "output_adapter": "ffn" in where,
        "is_parallel": config.variant in ("parallel", "scaled_parallel"),
        "original_ln_before": config.variant == "pfeiffer",
        "reduction_factor": factor if max(1, int(hidden // factor)) == size else hidden / (size + 0.5),
        "non_linearity": _ACTIVATIONS.get(activation, activation),
        "init_weights": _INITS[config.init or paper.init],
        "scaling": scaling,
        "dropout": config.dropout,
        "leave_out": _left_out(config, count, source),
    }, theirs


def _variant(config: dict[str, Any], source: object) -> str:
    problems = []
    if config["scaling"] == "channel" or (isinstance(config["scaling"], str) and config["scaling"] != "learned"):
        problems.append(f"scaling={config['scaling']!r}: a number or 'learned' is convertible.")
    if not (config["mh_adapter"] or config["output_adapter"]):
        problems.append("mh_adapter=False, output_adapter=False: there is no adapter in it.")
    behind_norm = config["original_ln_before"] and not config["is_parallel"]
    if behind_norm and config["residual_before_ln"] is not True:
        problems.append(
            f"residual_before_ln={config['residual_before_ln']!r}: the adapter's term is always added before the norm "
            "here (convertible is True)."
        )
    if problems:
        raise refusal(source, problems)
    if config["is_parallel"]:
        return "scaled_parallel" if config["scaling"] == "learned" else "parallel"
    return "pfeiffer" if behind_norm else "houlsby"


def _names(
    architecture: Architecture, layers: list[Layer], where: list[str], variant: str, learned: bool, source: object
) -> dict[str, str]:
    """Return our name of each of AdapterHub's tensors."""
    backbone = architecture.backbone(layers)
    parts = _PARTS | ({"scaling": "scaling"} if learned else {})
    names = {}
    for position, at in enumerate(layers):
        for place in where:
            holder = getattr(at.stack.names, place)
            if holder is None:
                raise refusal(
                    source,
                    [
                        f"{_PLACES[place]}=True: on {architecture.model_type} the library gives this adapter "
                        "the residual in place of attention's output, which no published variant does."
                    ],
                )
            path = find_place(backbone, position, place, variant)[0]
            for theirs, ours in parts.items():
                names[f"{at.path}.{holder}.adapters.{theirs}"] = f"{path}.bottleneck_adapter.{ours}"
    return names


def _size(config: dict[str, Any], ours: Tensors, source: object) -> dict[str, Any]:
    shapes = {tuple(tensor.shape) for name, tensor in ours.items() if name.endswith("down.weight")}
    if len(shapes) != 1:
        raise refusal(
            source,
            [f"reduction_factor={config['reduction_factor']!r}: all layers have the same bottleneck size here."],
        )
    size, hidden = shapes.pop()
    factor = config["reduction_factor"]
    exact = isinstance(factor, int | float) and 0 < factor <= hidden and int(hidden / factor) == size
    return {"reduction_factor": factor} if exact else {"bottleneck_size": size}


def _left_out(config: BottleneckConfig, count: int | None, source: object) -> list[int]:
    if config.layers is None and all(index >= 0 for index in config.leave_out):
        return list(config.leave_out)
    if count is None:
        raise refusal(
            source,
            [
                f"layers={config.layers}, leave_out={config.leave_out}: AdapterHub names the layers that are left out, "
                "and the folder doesn't say how many there are. Load and save it with this version of adapterlab first."
            ],
        )
    wanted = range(count) if config.layers is None else [index % count for index in config.layers]
    adapted = set(wanted) - {index % count for index in config.leave_out}
    return [index for index in range(count) if index not in adapted]
