"""The task's own modules: each adapter trains a copy, and the model's original waits aside."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from adapterlab.errors import BackboneError, did_you_mean
from adapterlab.guests import Guest, Guests


def trained_modules(model: nn.Module, guests: Guests, modules_to_save: list[str]) -> list[str]:
    """Return the paths of the modules to train in full: the heads, and those asked for by name ending.

    Raises:
        BackboneError: a name ending matches no module.
    """
    paths = list(guests.backbone.heads)
    for ending in modules_to_save:
        found = [name for name, _ in model.named_modules() if name == ending or name.endswith("." + ending)]
        if not found:
            names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
            raise BackboneError(f"modules_to_save: no module's name ends with '{ending}'.{did_you_mean(ending, names)}")
        paths += [path for path in found if not any(path == p or path.startswith(p + ".") for p in paths)]
    return paths


def adopt_heads(model: nn.Module, guests: Guests, guest: Guest, paths: list[str]) -> None:
    """Give the adapter its own copy of each head, in fp32, as it stands in the model before any adapter."""
    for path in paths:
        original = guests.heads_before.setdefault(path, model.get_submodule(path))
        head = copy.deepcopy(original)
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in head.parameters()):
            head.float().register_forward_pre_hook(_read_in_fp32)
        guest.heads[path] = head


def place_heads(model: nn.Module, guests: Guests, guest: Guest | None) -> None:
    """Put an adapter's heads into the model, or the originals back."""
    device = next(model.parameters()).device
    for path, original in guests.heads_before.items():
        head = guest.heads.get(path, original) if guest else original
        parent, _, child = path.rpartition(".")
        owner = model.get_submodule(parent)
        if owner._modules[child] is not head:
            head.train(owner._modules[child].training)  # type: ignore[union-attr]
            setattr(owner, child, head.to(device))
    labels = guest.labels if guest else guests.labels_before
    if labels and labels_of(model) != labels:
        config: Any = model.config
        config.id2label = dict(labels)
        config.label2id = {label: index for index, label in labels.items()}
        if hasattr(model, "num_labels"):
            setattr(model, "num_labels", len(labels))  # noqa: B010 (mypy takes a module's attributes for modules)


def labels_of(model: nn.Module) -> dict[int, str]:
    """Return the label names that the model's config holds, if it has a head for labels."""
    config: Any = model.config
    return {int(index): str(label) for index, label in (getattr(config, "id2label", None) or {}).items()}


def _read_in_fp32(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of an fp32 head on a bf16 or fp16 backbone."""
    return tuple(arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args)


def are_named(labels: dict[int, str]) -> bool:
    """Whether somebody gave these labels names, or they are transformers' placeholders LABEL_0, LABEL_1, ..."""
    return any(label != f"LABEL_{index}" for index, label in labels.items())
