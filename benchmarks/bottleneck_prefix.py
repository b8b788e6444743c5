"""Row 7: training steps of a bottleneck adapter and of a prefix, ours and the `adapters` library's.

The goal allows for the floor and the method's own arithmetic. Both are measured, in the same turns:

- Floor: the frozen backbone, whose backward goes as far down as the method's lowest parameters need it: to the first
  layer's output for the bottleneck, to the first layer's keys for the prefix.
- Bottleneck's arithmetic: in every layer `LN(up(relu(down(h))) + z)`, forward and backward, with the sizes of
  the adapter: two products with bias, the activation, the sum and the norm that Pfeiffer's formula has once more.
- Prefix's arithmetic: in every layer torch's attention with 50 keys and values more, less the same without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.nn import functional as F

import adapterlab
from benchmarks.adapters_library import Worker
from benchmarks.harness import (
    Goal,
    Part,
    Result,
    Row,
    Settings,
    hot_spots,
    interleaved,
    medians_of,
    ratios_of,
)
from benchmarks.steps import BATCH, LENGTH, bert, frozen, sizes, spared, step, tokens

WIDTH, SIZE, HEADS, PREFIX = 768, 64, 12, 50
OPTIONS = {
    "bottleneck": {"variant": "pfeiffer", "reduction_factor": WIDTH / SIZE},
    "prefix": {"num_virtual_tokens": PREFIX},
}
LOWEST = {"bottleneck": "bert.encoder.layer.0", "prefix": "bert.encoder.layer.0.attention.self.key"}


def bottleneck_alone(layers: int) -> Callable[[], None]:
    """Return the bottleneck's own arithmetic, in all layers but what needs no gradient below the first."""
    down, up, norm = torch.nn.Linear(WIDTH, SIZE), torch.nn.Linear(SIZE, WIDTH), torch.nn.LayerNorm(WIDTH)
    norm.requires_grad_(False)
    inputs = [torch.randn(BATCH, LENGTH, WIDTH, requires_grad=layer > 0) for layer in range(layers)]
    gradient = torch.randn(BATCH, LENGTH, WIDTH)

    def run() -> None:
        for h in inputs:
            down.zero_grad(), up.zero_grad()
            h.grad = None
            norm(up(F.relu(down(h))) + h).backward(gradient)

    return run


def attention_alone(layers: int, keys: int) -> Callable[[], None]:
    """Return attention as the backbone calls it, its dropout included, with so many keys."""
    shape = (BATCH, HEADS, LENGTH, WIDTH // HEADS)
    query, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
    key, value = (torch.randn(BATCH, HEADS, keys, WIDTH // HEADS, requires_grad=True) for _ in range(2))

    def run() -> None:
        for _ in range(layers):
            query.grad = key.grad = value.grad = None
            F.scaled_dot_product_attention(query, key, value, dropout_p=0.1).backward(gradient)

    return run


def compare(method: str, settings: Settings, worker: Worker) -> tuple[Part, str]:
    """Return a method's part of the row, and what its step spends its time in."""
    base, batch, layers = bert(settings.layers), tokens(), settings.layers
    ours, drawn = (adapterlab.attach(copy.deepcopy(base), method, **OPTIONS[method]) for _ in range(2))
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    if trained != worker.about["trained"]:
        raise RuntimeError(f"{method}: ours trains {trained} parameters, the library's {worker.about['trained']}.")
    contenders: dict[str, Callable[[], float | None]] = {
        "floor": step(frozen(base, LOWEST[method]), batch),
        "ours": step(spared(ours), batch),
        "ours, torch's dropout": step(spared(drawn, byte_dropout=False), batch),
        "adapters": worker,
    }
    if method == "bottleneck":
        contenders["arithmetic"] = bottleneck_alone(layers)
    else:
        contenders |= {"more keys": attention_alone(layers, LENGTH + PREFIX), "keys": attention_alone(layers, LENGTH)}
    medians = medians_of(interleaved(contenders, settings.rounds), 1000)
    if method == "prefix":
        medians["arithmetic"] = medians.pop("more keys") - medians.pop("keys")
    bound = medians | {"(floor + arithmetic)": medians["floor"] + medians["arithmetic"]}
    ratios = ratios_of(bound, "ours / (floor + arithmetic)", "adapters / ours", "adapters / ours, torch's dropout")
    return Part(method, medians, "ms", ratios), f"Of our {method} step: {hot_spots(contenders['ours'])}"


def measure(settings: Settings) -> Result:
    """Time both methods."""
    parts, notes, about = [], [sizes(settings.layers)], {}
    for method in OPTIONS:
        with Worker(settings.cache, method, settings.layers, BATCH, LENGTH) as worker:
            part, spots = compare(method, settings, worker)
        parts.append(part)
        notes.append(spots)
        about = worker.about
    notes.append(
        f"adapters {about['adapters']} runs beside transformers {about['transformers']} in a process of its own with "
        f"the same torch and threads, by {about['attention']}"
    )
    return Result(parts, notes, {"adapters": about["adapters"]})


ROWS = (
    Row(
        "7",
        "bottleneck (64 wide) and prefix (50 tokens) steps, fp32",
        (
            Goal("at most 1.10 x the floor and its arithmetic", "ours / (floor + arithmetic)", most=1.10),
            Goal("at least 1.3 x faster than adapters", "adapters / ours", least=1.3),
        ),
        measure,
    ),
)
