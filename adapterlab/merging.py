"""Fold adapters into the backbone's weights: what is left is a plain transformers model."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any, TypeVar, cast

import torch
from torch import nn

from adapterlab.adapters import METHODS
from adapterlab.attaching import activate, detach
from adapterlab.errors import AdapterError, BackboneError
from adapterlab.guests import Guest, Guests, need_guests
from adapterlab.token_rows import Rows, active_rows, embedding_of, output_of

M = TypeVar("M", bound=nn.Module)


def merge(model: M, name: str | None = None) -> M:
    """Fold the active adapters, or the one named, into the weights, in place and in fp32 arithmetic.

    The trained head becomes the model's own, the embeddings grow by the adapter's new tokens, and nothing of
    adapterlab stays: `save_pretrained` writes a folder that plain transformers loads. A weight that is tied to another
    one (GPT-2's `wte` and its output layer) is untied first if the adapter changes one end only; a warning says so.

    Returns:
        The same object.

    Raises:
        AdapterError: no adapter is active; the model has others, which would be lost; a method's terms are no
            change of weights (bottleneck, prefix, prompts); a number isn't finite. The model is as it was then.
    """
    guests = need_guests(model)
    names = [guests.pick(name, "merge").name] if name is not None else list(guests.active)
    chosen = [guests.adapters[name] for name in names]
    _check(model, guests, chosen)
    active = list(guests.active)
    activate(model, names)
    data = [(parameter, parameter.data) for parameter in model.parameters()]
    untied: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        _check_growth(model)
        untied = _untie(model, {guest.name for guest in chosen})
        for guest in chosen:
            guest.method.merge(model, guest.name, guest.config)
    except Exception as error:
        for module, key, parameter in untied:
            setattr(module, key, parameter)
        for parameter, before in data:
            parameter.data = before
        activate(model, active)
        raise AdapterError(f"merging {', '.join(names)} failed and was undone: {error}") from error
    heads, rows = _move_in(model, guests, chosen), active_rows(model)
    detach(model)
    dtype = next(model.get_submodule(guests.backbone.layers[0]).parameters()).dtype
    for head in heads:
        head.to(dtype)
    if untied:
        _say_untied(model, [guest.name for guest in chosen])
    if rows is not None:
        _settle(model, rows)
    return model


def _check(model: nn.Module, guests: Guests, chosen: list[Guest]) -> None:
    if not chosen:
        raise AdapterError(
            f"no adapter is active; the model has {', '.join(guests.adapters)}. "
            "Say which to merge: merge(model, 'NAME')."
        )
    rest = [name for name in guests.adapters if all(name != guest.name for guest in chosen)]
    if rest:
        raise AdapterError(
            f"merging {', '.join(guest.name for guest in chosen)} would leave {', '.join(rest)} on weights that they "
            f"weren't trained on. Detach them first, detach(model, '{rest[0]}'), or merge all: activate the list."
        )
    for guest in chosen:
        if not guest.method.merges:
            able = ", ".join(sorted(name for name, method in METHODS if method.merges))
            raise AdapterError(
                f"adapter '{guest.name}' ({guest.method_name}) can't be merged: what it adds is no change of the "
                f"backbone's weights. Deploy it attached, as it is; of the methods, these merge: {able}."
            )
        wrong = [path for path, p in guest.trained(model).items() if not torch.isfinite(p).all()]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise AdapterError(
                f"adapter '{guest.name}' has values that aren't finite, in {wrong[0]}{more}: its training diverged. "
                "Load an earlier state."
            )


def _untie(model: nn.Module, names: set[str]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give weights tied to one that will change their own copy; return what was where."""
    changed = []
    for parameter, paths in _ends(model).items():
        wrapped = [path for path in paths if _is_adapted(model, path, names)]
        if len(paths) < 2 or not wrapped:
            continue
        for path in paths:
            if path != wrapped[0]:
                changed.append((*_give_copy(model, path, parameter), parameter))
    return changed


def _ends(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return the paths of each parameter; a tied one has several."""
    ends = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        ends[parameter].append(path)
    return ends


def _give_copy(model: nn.Module, path: str, parameter: nn.Parameter) -> tuple[nn.Module, str]:
    """Put a copy of a tied parameter at one of its paths; return where that is."""
    owner, _, key = path.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, key, nn.Parameter(parameter.data.clone(), requires_grad=parameter.requires_grad))
    return module, key


def _is_adapted(model: nn.Module, path: str, names: set[str]) -> bool:
    """Whether the module around a weight holds one of the adapters: `wte.base_layer.weight` beside `wte.lora_A`."""
    owner, _, last = path.rpartition(".")[0].rpartition(".")
    if last != "base_layer":
        return False
    return any(names & set(part.split(".")) for part, _ in model.get_submodule(owner).named_parameters())


def _move_in(model: nn.Module, guests: Guests, chosen: list[Guest]) -> list[nn.Module]:
    """Make the heads of the last adapter that has some the model's own; return them."""
    with_heads = [guest for guest in chosen if guest.heads]
    if not with_heads:
        return []
    guest, config = with_heads[-1], cast(Any, model.config)
    for path, head in guest.heads.items():
        head._forward_pre_hooks.clear()
        guests.heads_before[path] = head
    guests.labels_before, guests.problem_type_before = guest.labels, getattr(config, "problem_type", None)
    return list(guest.heads.values())


def _say_untied(model: nn.Module, names: list[str]) -> None:
    config: Any = model.config
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    for parameter, paths in _ends(model).items():  # nothing is tied again when the model is loaded, biases neither
        for path in paths[1:]:
            _give_copy(model, path, parameter)
    warnings.warn(
        f"merging {', '.join(names)} changed a weight that was tied to another one: they are untied now "
        "(config.tie_word_embeddings=False), and the saved model is larger by one of them.",
        stacklevel=3,
    )


def _check_growth(model: Any) -> None:
    """Refuse a model whose embeddings transformers can't resize, if its active adapter needs that.

    Raises:
        BackboneError: its class doesn't say where they are.
    """
    rows = active_rows(model)
    try:
        if rows is not None and rows.tokens.end > len(embedding_of(model).weight):
            model.set_input_embeddings(model.get_input_embeddings())
    except NotImplementedError:
        raise BackboneError(
            f"{type(model).__name__} has no set_input_embeddings, so its embeddings can't grow by the new tokens. "
            "Use the adapter attached, as it is."
        ) from None


def _settle(model: Any, rows: Rows) -> None:
    """Write rows into a model's own embeddings, enlarged; it must have no adapters any more."""
    first, end = rows.tokens.first, rows.tokens.end
    if end > len(embedding_of(model).weight):
        model.resize_token_embeddings(end, mean_resizing=False)
    output = output_of(model)
    with torch.no_grad():
        embedding_of(model).weight[first:end] = rows.input.to(embedding_of(model).weight)
        if output is not None:
            output.weight[first:end] = (rows.input if rows.output is None else rows.output).to(output.weight)
            if output.bias is not None:
                output.bias[first:end] = 0
