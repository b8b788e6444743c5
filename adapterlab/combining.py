"""A new adapter out of several: their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import nn

from adapterlab.attaching import activate, attach, detach
from adapterlab.errors import AdapterError, ConfigError, did_you_mean
from adapterlab.guests import Guest, need_guests
from adapterlab.token_rows import rows_of

M = TypeVar("M", bound=nn.Module)
_WAYS = ("linear", "cat", "svd")


def combine(
    model: M,
    adapters: Mapping[str, float] | Sequence[str],
    name: str = "combined",
    *,
    how: Literal["linear", "cat", "svd"] = "cat",
    r: int | None = None,
    head: str | None = None,
) -> M:
    """Make a new adapter that is the weighted sum of others, and activate it; the others stay.

    Args:
        model: a model with several adapters of one method that can be summed (LoRA).
        adapters: weights by name, `{"news": 0.7, "law": 0.3}`; a list weighs each with 1.
        name: the new adapter's.
        how: "cat" (exact, ranks add up), "svd" (the nearest of rank r), or "linear" (A's and B's summed each by
            themselves, as peft does: equal ranks, and not quite the sum of the updates).
        r: rank for "svd"; the largest of theirs if left out.
        head: whose head the new adapter gets; if left out, heads with the same labels are averaged by the weights.

    Returns:
        The same model.

    Raises:
        AdapterError: an unknown name; methods that differ or can't be summed; heads that differ.
        ConfigError: a weight, `how` or `r` that can't be. The model is as it was.
    """
    guests = need_guests(model)
    weights = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
    parts = [guests.pick(part, "combine") for part in weights]
    bringing = [part.name for part in parts if rows_of(model, part.name) is not None]
    if bringing:
        raise AdapterError(f"adapter '{bringing[0]}' brings new tokens, which have no weighted sum; merge it instead.")
    _check(parts, weights, how, r)
    method = parts[0].method
    options, state = method.combine(model, {part.name: (part.config, weights[part.name]) for part in parts}, how, r)
    heads, owner = _heads(parts, weights, guests.pick(head, "take the head of") if head else None)
    before = list(guests.active)
    labels = list(owner.labels.values()) if owner is not None and owner.labels else None
    attach(model, method.name, name, labels=labels, **options)
    guest = guests.adapters[name]
    try:
        method.load_state(model, name, guest.config, state)
        for path, module in guest.heads.items():
            module.load_state_dict(heads.get(path, module.state_dict()))
    except Exception:
        detach(model, name)
        activate(model, before)
        raise
    return model


def _check(parts: list[Guest], weights: dict[str, float], how: str, r: int | None) -> None:
    problems = []
    if len(parts) < 1:
        problems.append("adapters: at least one is needed, e.g. {'news': 0.7, 'law': 0.3}.")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            problems.append(f"adapters: the weight of '{name}' must be a finite number, and is {weight!r}.")
    if how not in _WAYS:
        problems.append(f"how: '{how}' is none of {', '.join(_WAYS)}.{did_you_mean(how, _WAYS)}")
    if r is not None and (how != "svd" or isinstance(r, bool) or not isinstance(r, int) or r < 1):
        problems.append(f"r: a rank of 1 or more for how='svd', which alone takes one (given: r={r!r}, how={how!r}).")
    if problems:
        raise ConfigError(problems)
    kinds = {part.name: part.method_name for part in parts}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"'{name}' is {kind}" for name, kind in kinds.items())
        raise AdapterError(
            f"adapters of different methods can't be summed ({listed}). Activate them together instead: "
            f"activate(model, {list(kinds)})."
        )


def _heads(
    parts: list[Guest], weights: dict[str, float], chosen: Guest | None
) -> tuple[dict[str, dict[str, torch.Tensor]], Guest | None]:
    """Return the state of each head of the new adapter, by path, and the adapter whose labels it has."""
    having = [part for part in parts if part.heads] if chosen is None else [chosen]
    if not having:
        return {}, None
    first = having[0]
    total = sum(weights.get(part.name, 1.0) for part in having)
    alike = all(part.labels == first.labels and part.heads.keys() == first.heads.keys() for part in having)
    if len(having) > 1 and (not alike or abs(total) < 1e-6):
        why = "their weights sum to zero" if alike else "their labels differ"
        raise AdapterError(
            f"the heads of {', '.join(part.name for part in having)} can't be averaged: {why}. "
            f"Say whose head the new adapter gets: head='{first.name}'."
        )
    shares = [1.0 if len(having) == 1 else weights[part.name] / total for part in having]
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for path in first.heads:
        states = [part.heads[path].state_dict() for part in having]
        heads[path] = {
            key: sum((s[key] * share for s, share in zip(states, shares, strict=True)), torch.zeros_like(value))
            if value.is_floating_point()
            else value
            for key, value in states[0].items()
        }
    return heads, first
