"""The task's own modules: each adapter trains a copy, of a size of its own if need be; the original waits aside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adapterlab.backbones import Backbone, join
from adapterlab.errors import BackboneError, ConfigError, did_you_mean
from adapterlab.guests import Guest, Guests


def adopt_heads(model: nn.Module, guests: Guests, guest: Guest, labels: Sequence[str] | None = None) -> None:
    """Give the adapter its own copy, in fp32, of each module that it trains in full, as it was before any adapter.

    Args:
        labels: names for a head of another size: its last linear is made anew for them.

    Raises:
        BackboneError: a name in modules_to_save matches nothing, or what it matches can't be trained in full;
            labels are given and no head has an output for each label.
    """
    output = None if labels is None else label_output(model, guests.backbone, guests)
    if labels is not None and output is None:
        raise BackboneError(
            f"labels: this {type(model).__name__} has no classification head with an output for each label. "
            "Load the backbone with one, e.g. AutoModelForSequenceClassification, or leave labels out."
        )
    for path in _paths(model, guests, guest):
        original = guests.heads_before.setdefault(path, model.get_submodule(path))
        head = copy.deepcopy(original).float()
        if labels is not None and output is not None and f"{output}.".startswith(f"{path}."):
            head = _with_outputs(head, output[len(path) + 1 :], len(labels), model)
        head.register_forward_pre_hook(_read_in_own_dtype)
        guest.heads[path] = head
    guest.labels = dict(guests.labels_before) if guest.heads else {}
    guest.problem_type = guests.problem_type_before
    if labels is not None and list(guest.labels.values()) != list(labels):
        guest.labels = dict(enumerate(labels))
        guest.problem_type = None  # transformers finds it anew from the number of labels


def check_apart(model: nn.Module, guests: Guests, guest: Guest) -> None:
    """Refuse an adapter whose parts lie inside a module that one adapter trains in full, or the other way round.

    Raises:
        BackboneError: the module is swapped when adapters are switched, and the parts would go with it.
    """
    everybody = [*guests.adapters.values(), guest]
    for path in {path for one in everybody for path in one.heads}:
        for one in everybody:
            inside = next((p for p in one.method.parameters(model, one.name) if p.startswith(path + ".")), None)
            if inside is not None:
                raise BackboneError(
                    f"adapter '{one.name}' has '{inside}' inside '{path}', which an adapter trains in full "
                    "(modules_to_save, or a head). Leave the module out of one of them."
                )


def read_labels(labels: Any) -> list[str] | None:
    """Check `attach(..., labels=...)`: names, or how many.

    Raises:
        ConfigError: neither, or a name is there twice.
    """
    if labels is None:
        return None
    if isinstance(labels, int) and not isinstance(labels, bool) and labels > 0:
        return [f"LABEL_{index}" for index in range(labels)]
    names = list(labels) if isinstance(labels, list | tuple) else []
    if not names or not all(isinstance(label, str) for label in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"labels: a list of different names, or how many there are, is needed, and {labels!r} was given. "
            "For example labels=['negative', 'positive']."
        )
    return names


def label_output(model: nn.Module, backbone: Backbone, guests: Guests | None = None) -> str | None:
    """Return the path of the linear with an output for each label of the model's own head, if it classifies."""
    count = len(guests.labels_before if guests else labels_of(model))
    if "Classification" not in type(model).__name__:
        return None
    waiting = guests.heads_before if guests else {}
    found = [
        join(path, name)
        for path in backbone.heads
        for name, module in waiting.get(path, model.get_submodule(path)).named_modules()
        if isinstance(module, nn.Linear) and module.out_features == count
    ]
    return found[-1] if found else None


def _with_outputs(head: nn.Module, path: str, count: int, model: nn.Module) -> nn.Module:
    """Return the head with a fresh linear of `count` outputs at `path` ("" is the head itself)."""
    old: Any = head.get_submodule(path)
    if old.out_features == count:
        return head
    new = nn.Linear(old.in_features, count, bias=old.bias is not None, device=old.weight.device)
    config: Any = model.config
    nn.init.normal_(new.weight, std=getattr(config, "initializer_range", 0.02))
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    if not path:
        return new
    owner, _, child = path.rpartition(".")
    setattr(head.get_submodule(owner), child, new)
    return head


def place_heads(model: nn.Module, guests: Guests, guest: Guest | None) -> None:
    """Put an adapter's heads into the model, or the originals back; and the label names that go with them."""
    reference = next(model.parameters())
    for path, original in guests.heads_before.items():
        head = guest.heads.get(path, original) if guest else original
        parent, _, child = path.rpartition(".")
        owner = model.get_submodule(parent)
        if owner._modules[child] is head:
            continue
        head.train(owner._modules[child].training)  # type: ignore[union-attr]
        head.to(reference.device)
        if head is original and reference.dtype != guests.dtype_before:
            head.to(reference.dtype)  # the model was cast while this one waited aside
        setattr(owner, child, head)
    labels = guest.labels if guest else guests.labels_before
    if labels and labels_of(model) != labels:
        set_labels(model, labels)
    config: Any = model.config
    config.problem_type = guest.problem_type if guest else guests.problem_type_before


def set_labels(model: nn.Module, labels: dict[int, str]) -> None:
    """Give the model's config these label names."""
    config: Any = model.config
    config.id2label = dict(labels)
    config.label2id = {label: index for index, label in labels.items()}
    if hasattr(model, "num_labels"):
        setattr(model, "num_labels", len(labels))  # noqa: B010 (mypy takes a module's attributes for modules)


def _paths(model: nn.Module, guests: Guests, guest: Guest) -> list[str]:
    """Return the paths of the modules to train in full: the heads, and those asked for by name ending."""
    paths = list(guests.backbone.heads)
    rewired = [*guests.backbone.layers] if guest.method.rewires_layers else []
    if rewired and (positions := guests.backbone.positions()) is not None:
        rewired.append(positions)
    for ending in guest.config.modules_to_save:
        found = [name for name, _ in model.named_modules() if name == ending or name.endswith("." + ending)]
        if not found:
            names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
            raise BackboneError(f"modules_to_save: no module's name ends with '{ending}'.{did_you_mean(ending, names)}")
        for path in found:
            if path not in paths and not any(path.startswith(other + ".") for other in paths):
                paths.append(path)
    for path in paths:
        clash = next((p for p in rewired if _overlap(path, p)), None)
        if clash is not None:
            raise BackboneError(
                f"modules_to_save: '{path}' can't be trained in full, since {guest.method_name} works inside "
                f"'{clash}'. Leave it out, or use lora, which keeps out of it."
            )
        nested = next((p for p in guests.heads_before if p != path and _overlap(path, p)), None)
        if nested is not None:
            raise BackboneError(f"modules_to_save: '{path}' overlaps '{nested}', which another adapter trains in full.")
    return paths


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


def labels_of(model: nn.Module) -> dict[int, str]:
    """Return the label names that the model's config holds, if it has a head for labels."""
    config: Any = model.config
    return {int(index): str(label) for index, label in (getattr(config, "id2label", None) or {}).items()}


def _read_in_own_dtype(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a head: it may be in fp32 on a bf16 backbone."""
    dtype = next(module.parameters()).dtype
    return tuple(arg.to(dtype) if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args)


def are_named(labels: dict[int, str]) -> bool:
    """Whether somebody gave these labels names, or they are transformers' placeholders LABEL_0, LABEL_1, ..."""
    return any(label != f"LABEL_{index}" for index, label in labels.items())
