"""Which modules a low-rank method adapts: all linears in the layers, or those that names or globs say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field
from torch import nn

from adapterlab import token_rows
from adapterlab.adapters.base import METHODS, MethodConfig
from adapterlab.adapters.patterns import check_pattern, check_patterns, is_glob, matches
from adapterlab.backbones import LINEAR, Backbone, Found, join
from adapterlab.errors import BackboneError, did_you_mean

ALL_LINEAR = "all-linear"
Kinds = tuple[type[nn.Module], ...]


def _check_targets(value: Any) -> Any:
    if isinstance(value, str) and value != ALL_LINEAR:
        if not is_glob(check_pattern(value)):
            raise ValueError(f"'{ALL_LINEAR}', a glob or a list of name endings is needed, for instance ['{value}']")
        return [value]
    return check_patterns(sorted(value) if isinstance(value, set | tuple) else value)


Targets = Annotated[Literal["all-linear"] | list[str], BeforeValidator(_check_targets)]
Layers = Annotated[list[int] | None, Field(min_length=1)]


class TargetConfig(MethodConfig):
    """Options of methods that adapt modules found by name."""

    target_modules: Targets = Field(
        "all-linear",
        description="'all-linear' (every linear in the layers), name endings or globs ['layer.*.attention.self.[qv]*']",
    )
    layers: Layers = Field(
        None,
        validation_alias=AliasChoices("layers", "layers_to_transform"),
        description="indices of the layers to adapt, negative from the top; all if left out",
    )


def find_targets(
    model: nn.Module,
    backbone: Backbone,
    wanted: str | list[str],
    layers: list[int] | None,
    saved: list[str],
    kinds: Kinds = LINEAR,
) -> list[Found]:
    """Return the modules to adapt, in the model's order.

    Args:
        wanted: "all-linear" (every linear inside the layers; not the pooler, not a head), or name endings and
            globs: `["query", "value"]`, `["layer.*.attention.self.[qv]*"]`.
        layers: indices of the layers to use; None for all.
        saved: name endings of modules that are trained in full; what is inside them is no target.
        kinds: the types of modules that can be adapted.

    Raises:
        BackboneError: nothing matches, a name matches nothing, or only modules of other kinds.
    """
    picked = None if layers is None else backbone.pick_layers(layers)
    if wanted == ALL_LINEAR:
        inside = _free(backbone.linears(model, picked), saved)
        if not inside:
            raise BackboneError(f"no linear module was found in the layers of this {backbone.model_type}.")
        return inside
    everywhere = _free(_outside_heads(model, backbone), saved)
    within = everywhere if picked is None else [m for m in everywhere if _in_layers(m.path, backbone, picked)]
    able = [module for module in within if _is_able(module.module, kinds)]
    found = [module for module in able if any(matches(pattern, module.path) for pattern in wanted)]
    unmatched = [pattern for pattern in wanted if not any(matches(pattern, module.path) for module in found)]
    if unmatched or not found:
        raise BackboneError(_why_not(backbone, unmatched, everywhere, able, kinds))
    return found


def _why_not(backbone: Backbone, unmatched: list[str], everywhere: list[Found], able: list[Found], kinds: Kinds) -> str:
    """Say why patterns match none of the modules that come into question."""
    possible = f"{', '.join(kind.__name__ for kind in kinds[:-1])} and {kinds[-1].__name__}"
    if not unmatched:
        return "target_modules: the list is empty. Name modules to adapt, or take 'all-linear'."
    named = [module for module in everywhere if matches(unmatched[0], module.path)]
    path, module = next((m for m in named if _is_able(m.module, kinds)), named[0] if named else ("", None))
    if module is not None and _is_able(module, kinds):
        return f"target_modules: '{unmatched[0]}' ({path}) is outside the chosen layers. Leave layers out, or the name."
    known = list(dict.fromkeys(_relative(backbone, target.path) for target in able))
    names = [*(name.rsplit(".", 1)[-1] for name in known), *known]
    if module is not None:
        inside = [name for name in known if _relative(backbone, path) in name]
        hint = f" Inside it: {', '.join(inside)}." if inside else ""
        return (
            f"target_modules: '{unmatched[0]}' ({path}) is of kind {type(module).__name__}, which can't be adapted: "
            f"possible are {possible}.{hint} To train it in full, name it in modules_to_save."
        )
    return (
        f"target_modules: {unmatched} match no {possible.replace(' and ', ' or ')} of this {backbone.model_type}."
        f"{did_you_mean(unmatched[0], names)} It has: {', '.join(known)}."
    )


def name_endings(model: nn.Module, backbone: Backbone, paths: set[str]) -> list[str]:
    """Return the shortest way to say `paths`: endings relative to a layer if they name nothing else."""
    relative = sorted({_relative(backbone, path) for path in paths})
    every = {plain(module.path) for module in own_modules(model)}
    matched = {path for path in every if any(matches(ending, path) for ending in relative)}
    return relative if matched == paths else sorted(paths)


def plain(path: str) -> str:
    """Return a module's path as it is without the wrappers that peft puts around linears."""
    return ".".join(part for part in path.split(".") if part != "base_layer")


def own_modules(model: nn.Module) -> Iterable[Found]:
    """Yield the model's modules that no adapter brought, by the path that they have now."""
    markers = tuple(method.marker for _, method in METHODS)
    seen, waiting = set(), [Found("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield Found(path, module)
        inside = [(name, child) for name, child in module.named_children() if not name.startswith(markers)]
        waiting += [
            Found(join(path, name), child) for name, child in reversed(inside) if path or name != token_rows.CHILD
        ]


def is_inside(path: str, endings: Iterable[str]) -> bool:
    """Whether a module is, or is part of, one whose name ends so."""
    parts = path.split(".")
    return any(matches(ending, ".".join(parts[: n + 1])) for n in range(len(parts)) for ending in endings)


def _free(modules: Iterable[Found], saved: list[str]) -> list[Found]:
    """Return the backbone's own modules: not an adapter's, not inside a module that is trained in full."""
    markers = tuple(method.marker for _, method in METHODS)
    found = {}
    for path, module in modules:
        if not is_inside(path, saved) and not any(part.startswith(markers) for part in path.split(".")):
            found[plain(path)] = module  # what is innermost in wrappers comes last
    return [Found(path, module) for path, module in found.items()]


def _outside_heads(model: nn.Module, backbone: Backbone) -> Iterable[Found]:
    for name, module in model.named_modules():
        if name and name.split(".")[0] not in backbone.heads:
            yield Found(name, module)


def _in_layers(path: str, backbone: Backbone, picked: list[int]) -> bool:
    return any(path.startswith(backbone.layers[index] + ".") for index in picked)


def _is_able(module: nn.Module, kinds: Kinds) -> bool:
    """Whether a module is of a kind that can be adapted; an embedding that is more than a lookup isn't."""
    if isinstance(module, nn.Embedding) and type(module).forward is not nn.Embedding.forward:
        return nn.Embedding in kinds and hasattr(module, "embed_scale")
    return isinstance(module, kinds)


def _relative(backbone: Backbone, path: str) -> str:
    return next((path.removeprefix(layer + ".") for layer in backbone.layers if path.startswith(layer + ".")), path)
