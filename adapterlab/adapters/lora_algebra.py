"""Weighted sums of low-rank updates: `W1 B1 A1 + W2 B2 A2 + ...` as one update `B A`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from adapterlab.adapters.lora_inits import factors
from adapterlab.errors import ConfigError

Term = tuple[torch.Tensor, torch.Tensor, float]  # A (r, in), B (out, r), and its weight times its scaling


def weighted_sum(terms: Sequence[Term], how: str, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, in) and B (out, r) of the sum, padded with zeros to rank r.

    - "cat": ranks add up; the sum is exact.
    - "svd": the best approximation of rank r in the Frobenius norm (Eckart & Young), exact if r is large enough.
    - "linear": the A's and the B's are summed by themselves, each by the square root of its weight: no rank is added,
      but products of one adapter's A and another's B come in. As peft has it.
    """
    a, b = (_linear if how == "linear" else _concatenated)(terms)
    if how == "svd":
        a, b = _truncated(a, b, r)
    missing = r - len(a)
    return torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)


def _linear(terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    a = sum(weight_a * abs(weight) ** 0.5 * (1 if weight >= 0 else -1) for weight_a, _, weight in terms)
    b = sum(weight_b * abs(weight) ** 0.5 for _, weight_b, weight in terms)
    return torch.as_tensor(a), torch.as_tensor(b)


def _concatenated(terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([a * weight for a, _, weight in terms]), torch.cat([b for _, b, _ in terms], dim=1)


def _truncated(a: torch.Tensor, b: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the r leading singular triplets of B A; the singular value decomposition is of a small core only."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s[:r].sqrt()
    return (root[:, None] * (vh[:r] @ q_a.T)).to(a), ((q_b @ u[:, :r]) * root).to(b)


def combined(
    layers: Mapping[str, Any], weights: Mapping[str, float], how: str, r: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """Sum the updates of several adapters in peft's LoRA layers; return the state, with scaling 1, and its rank.

    Args:
        layers: the layers by path, as the state's keys have it.
        weights: of the adapters, by name.

    Raises:
        ConfigError: "linear" was asked for and ranks differ.
    """
    terms = {path: [t for name, w in weights.items() if (t := _term(layer, name, w))] for path, layer in layers.items()}
    ranks = sorted({len(a) for found in terms.values() for a, _, _ in found})
    if how == "linear" and len(ranks) > 1:
        raise ConfigError(f"how: 'linear' needs equal ranks, and these are {ranks}. Take 'svd' or 'cat'.")
    largest = max((sum(len(a) for a, _, _ in found) for found in terms.values()), default=0)
    rank = largest if how == "cat" else r or ranks[-1]
    state: dict[str, torch.Tensor] = {}
    for path, found in terms.items():
        if found:
            embedding = not isinstance(layers[path].get_base_layer(), (torch.nn.Linear, Conv1D))
            a, b = weighted_sum(found, how, rank)
            keys = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
            state |= {f"{path}.{keys[0]}": a, f"{path}.{keys[1]}": b}
    return state, rank


def _term(layer: Any, name: str, weight: float) -> Term | None:
    if name in layer.lora_A:
        a, b = factors(layer, name)
    elif name in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    else:
        return None
    return a.detach().float(), b.detach().float(), weight * layer.scaling[name]
