"""LoRA: target modules and AdapterHub's choice of matrices; GPT-2's query, key and value in one matrix."""

from __future__ import annotations

from typing import Any

import torch

from adapterlab.adapters import LoraConfig
from adapterlab.adapters.patterns import chosen
from adapterlab.converting.fields import LORA, Tensors, check, number, only, refusal, rename, typed
from adapterlab.converting.names import Architecture, Layer, Names

_READ = {
    "alpha", "attn_matrices", "dropout", "intermediate_lora", "leave_out", "output_lora", "r", "selfattn_lora",
}  # fmt: skip
_WRITTEN = {
    "alpha", "alpha_pattern", "dropout", "init", "layers", "modules_to_save", "oversized_rank", "r", "rank_pattern",
    "target_modules", "use_rslora",
}  # fmt: skip
_KINDS = ("q", "k", "v", "intermediate", "output")


def to_ours(
    config: dict[str, Any], tensors: Tensors, architecture: Architecture, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return options and tensors of our method, given AdapterHub's config and tensors.

    Tensors' names are from the base model, without the adapter's name.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    config = check(config, _READ, source)
    kinds: dict[str, tuple[type, ...]] = {"r": (int,), "alpha": (int, float), "attn_matrices": (list,)}
    typed(config, kinds | {"leave_out": (list,), "dropout": (int, float)}, source)
    matrices = [kind for kind in ("q", "k", "v") if kind in config["attn_matrices"]]
    if set(config["attn_matrices"]) - set(matrices):
        raise refusal(source, [f"attn_matrices={config['attn_matrices']!r}: of 'q', 'k', 'v' only."])
    adapted = [*(matrices if config["selfattn_lora"] else []),
               *(kind for kind in ("intermediate", "output") if config[f"{kind}_lora"])]  # fmt: skip
    layers = architecture.layers(tensors)
    absent = [] if len(architecture.stacks) > 1 else architecture.left_out(layers, None)
    missing = [f"all of layer {index}" for index in absent if index not in config["leave_out"]]
    ours = rename(tensors, _names(layers, adapted), source, missing)
    names = architecture.stacks[0].names
    r, alpha, groups = config["r"], config["alpha"], len(matrices) if names.merged and config["selfattn_lora"] else 1
    merged = names.query[0]
    for name, tensor in ours.items():
        if names.merged and f".{merged}.lora_B" in name:
            ours[name] = _spread(tensor, matrices)
    modules = list(dict.fromkeys(module for at in layers for module in _modules(at.stack.names, adapted)))
    options: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": config["dropout"]}
    if groups > 1 and modules == [merged]:
        options |= {"r": r * groups, "alpha": alpha * groups}
    elif groups > 1:
        options |= {"rank_pattern": {merged: r * groups}, "alpha_pattern": {merged: alpha * groups}}
    paths = sorted({name.split(".lora_")[0] for name in ours})
    options["target_modules"] = paths if config["leave_out"] else sorted(modules)
    _check_ranks(options, ours, source)
    return options, ours


def to_hub(
    config: LoraConfig, tensors: Tensors, architecture: Architecture, left_out: list[int] | None, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return AdapterHub's config and tensors; `left_out` are the layers without adapter, if that is known.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    only(config, _WRITTEN, source)
    layers = architecture.layers(tensors)
    targets = {name.split(".lora_")[0] for name in tensors}
    adapted = [
        kind
        for kind in _KINDS
        for at in layers
        if targets & {f"{at.path}.{m}" for m in _modules(at.stack.names, [kind])}
    ]
    adapted = list(dict.fromkeys(adapted))
    _check_targets(targets, layers, architecture, source)
    theirs = rename(tensors, {ours: theirs for theirs, ours in _names(layers, adapted).items()}, source)
    scales = {target: _scale(config, target, tensors) for target in targets}
    names = architecture.stacks[0].names
    if names.merged and "q" in adapted:
        theirs, scales, matrices = _gather(theirs, scales, names.query[0])
    else:
        matrices = [kind for kind in adapted if kind in ("q", "k", "v")]
    if len(set(scales.values())) > 1:
        given = "; ".join(f"{target}: r={r}, alpha={alpha:g}" for target, (r, alpha) in sorted(scales.items())[:6])
        raise refusal(
            source, [f"rank_pattern, alpha_pattern: AdapterHub has one r and alpha for all modules ({given})."]
        )
    r, alpha = next(iter(scales.values()))
    return LORA | {
        "r": r,
        "alpha": number(alpha),
        "dropout": config.dropout,
        "selfattn_lora": bool(matrices),
        "attn_matrices": matrices or LORA["attn_matrices"],
        "intermediate_lora": "intermediate" in adapted,
        "output_lora": "output" in adapted,
        "leave_out": left_out if left_out is not None else architecture.left_out(layers, None),
    }, theirs


def _modules(names: Names, adapted: list[str]) -> list[str]:
    known = dict(
        zip(_KINDS, (names.query, names.key, names.value, (names.intermediate,), (names.output,)), strict=True)
    )
    return list(dict.fromkeys(module for kind in adapted for module in known[kind]))


def _names(layers: list[Layer], adapted: list[str]) -> dict[str, str]:
    """Return our name of each of AdapterHub's tensors."""
    return {
        f"{at.path}.{module}.loras.{part}": f"{at.path}.{module}.{part}.weight"
        for at in layers
        for module in _modules(at.stack.names, adapted)
        for part in ("lora_A", "lora_B")
    }


def _check_ranks(options: dict[str, Any], ours: Tensors, source: object) -> None:
    for name, tensor in ours.items():
        target = name.split(".lora_")[0]
        wanted = chosen(options.get("rank_pattern", {}), target, options["r"])
        rank = tensor.shape[0 if "lora_A" in name else 1] if tensor.ndim == 2 else None
        if rank != wanted:
            raise refusal(source, [f"r={options['r']}: {name} has the shape {list(tensor.shape)}."])


def _check_targets(targets: set[str], layers: list[Layer], architecture: Architecture, source: object) -> None:
    known = {f"{at.path}.{module}" for at in layers for module in _modules(at.stack.names, list(_KINDS))}
    foreign = sorted(targets - known)
    if foreign:
        modules = {module for stack in architecture.stacks for module in _modules(stack.names, list(_KINDS))}
        raise refusal(
            source,
            [
                f"target_modules: AdapterHub has no LoRA at {', '.join(foreign[:4])}{' ...' if foreign[4:] else ''}. "
                f"On {architecture.model_type} it adapts {', '.join(sorted(modules))}; train with "
                f"target_modules={sorted(modules)}, or fewer of them."
            ],
        )


def _scale(config: LoraConfig, target: str, tensors: Tensors) -> tuple[int, float]:
    """Return (r, alpha) of a module as AdapterHub means them: the update is scaled by alpha / r."""
    r = tensors[f"{target}.lora_A.weight"].shape[0]
    alpha = chosen(config.alpha_pattern, target, config.alpha)
    return r, alpha * r**0.5 if config.use_rslora else alpha


def _spread(b: torch.Tensor, matrices: list[str]) -> torch.Tensor:
    """Return the (3 · size, n · r) matrix that does what AdapterHub's groups do, given their (n · size, r).

    There each of the n matrices that are adapted has its own r rows of A.
    """
    n, r = len(matrices), b.shape[1]
    size = b.shape[0] // n
    wide = b.new_zeros(3, size, n * r)
    for group, kind in enumerate(matrices):
        wide["qkv".index(kind), :, group * r : (group + 1) * r] = b[group * size : (group + 1) * size]
    return wide.view(3 * size, n * r)


def _gather(
    theirs: Tensors, scales: dict[str, tuple[int, float]], merged: str
) -> tuple[Tensors, dict[str, tuple[int, float]], list[str]]:
    """Undo `_spread`; a B that isn't made of such groups becomes three, which share their A.

    Returns:
        The tensors, the scale of each module, and which of q, k, v are adapted.
    """
    wides = {name: tensor for name, tensor in theirs.items() if f".{merged}.loras.lora_B" in name}
    used = [
        kind for part, kind in enumerate("qkv") if any(t.view(3, -1, t.shape[1])[part].any() for t in wides.values())
    ]
    n = len(used)
    others = {scale for target, scale in scales.items() if not target.endswith(merged)}
    grouped = {}
    for name, wide in wides.items():
        rank = wide.shape[1]
        r = rank // n if n else 0
        if n == 0 or rank % n:
            break
        parts = [wide.view(3, -1, rank)["qkv".index(kind), :, g * r : (g + 1) * r] for g, kind in enumerate(used)]
        narrow = torch.cat(parts)
        if not torch.equal(_spread(narrow, used), wide):
            break
        grouped[name] = narrow
    own = {target: scale for target, scale in scales.items() if target.endswith(merged)}
    small = {target: (r // n, alpha / n) for target, (r, alpha) in own.items()} if len(grouped) == len(wides) else {}
    if small and (not others or set(small.values()) == others):
        return theirs | grouped, scales | small, used
    shared = {name: tensor.repeat(3, 1) for name, tensor in theirs.items() if f".{merged}.loras.lora_A" in name}
    return theirs | shared, scales, ["q", "k", "v"]
