"""The frozen layers below everything that is trained: which these are, and how a forward goes without them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapterlab.backbones import at_rest
from adapterlab.errors import BackboneError, ConfigError
from adapterlab.guests import need_guests
from adapterlab.sharding import is_sharded
from adapterlab.tasks import Task
from adapterlab.training.trainer import by_length

KEY = "optim.cache_lower_layers"
_WITHOUT = "Leave the option out."
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Forward = Callable[..., Any]


@dataclass(frozen=True)
class LowerLayers:
    """The layers below everything that is trained, and what their output of all rows to train on takes."""

    task: Task
    model: Any
    modules: tuple[nn.Module, ...]
    of: int  # all layers
    parts: tuple[int, ...]  # of the tuple that each of them returns; 0: it returns a tensor
    number_format: str
    tokens: int  # of the rows
    width: int  # of a token's hidden states, in bytes

    @property
    def bytes(self) -> int:
        """The hidden states of all tokens."""
        return self.tokens * self.width


class Enough(Exception):  # noqa: N818 (no error)
    """Ends a forward whose rest nobody needs."""


def find_lower_layers(task: Task, model: Any, tokenizer: Any, rows: Any, number_format: str) -> LowerLayers:
    """Find the layers that nothing trained reaches; and try out, on two rows, that training can begin above them.

    Whatever is trained, and wherever (adapters, prefixes, prompts, modules in full), autograd knows it: the first layer
    whose output has a gradient is the lowest that has to run.

    Args:
        task: prepared for the model.
        model: the backbone with its adapter.
        tokenizer: the task's collator needs it.
        rows: the encoded rows to train on.
        number_format: what training computes in: "fp32", "bf16" or "fp16".

    Raises:
        ConfigError: something trained reaches the output of the lowest layer.
        BackboneError: this model, or this machine, can't begin in the middle.
    """
    name = type(model).__name__
    _check_kind(model, name)
    order = by_length(rows)
    chosen = [rows[place] for place in {order[len(order) // 2], order[-1]}]  # so that one is padded
    batch = batch_of(task.collator(tokenizer), chosen, model)
    real = real_tokens(batch, [tokens_of(row["input_ids"]) for row in chosen])
    layers = [model.get_submodule(path) for path in need_guests(model).backbone.layers]
    whole, upper = Watching(), Watching()
    with evaluating(model, number_format):
        with torch.enable_grad(), replaced(layers, whole):
            task.forward(model, batch)
        if whole.order != list(range(len(layers))):
            raise BackboneError(f"{KEY}: {name}'s layers don't run one after the other, once each. {_WITHOUT}")
        states = [hidden_of(output) for output in whole.outputs]
        count = next((place for place, one in enumerate(states) if one.requires_grad), len(layers))
        if not count:
            raise ConfigError(_nothing_below(model, states[0], len(layers)))
        lower = LowerLayers(
            task=task,
            model=model,
            modules=tuple(layers[:count]),
            of=len(layers),
            parts=tuple(len(output) if isinstance(output, tuple) else 0 for output in whole.outputs[:count]),
            number_format=number_format,
            tokens=sum(map(tokens_of, rows["input_ids"])),
            width=states[count - 1].shape[-1] * states[count - 1].element_size(),
        )
        skipping = Skipping(lower.parts)
        with torch.no_grad(), replaced(lower.modules, skipping), replaced(layers[count:], upper):
            skipping.states, skipping.real = packed(states[count - 1].detach(), real), real
            task.forward(model, batch)
    pairs = zip(states[count:], map(hidden_of, upper.outputs), strict=True)
    if not all(_same(packed(one.detach(), real), packed(other, real)) for one, other in pairs):
        raise BackboneError(
            f"{KEY}: the upper layers of {name} compute something else when the lower ones don't run. They are "
            f"given more than hidden states, or a {task.type} task reads a row differently each time. {_WITHOUT}"
        )
    return lower


class Watching:
    """Makes forwards that note what layers return, and in which order they run.

    Args:
        until: the place of the layer that is the last to run.
    """

    def __init__(self, until: int | None = None) -> None:
        self.order: list[int] = []
        self.outputs: list[Any] = []
        self.until = until

    def __call__(self, place: int, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.outputs.append(forward(*args, **kwargs))
            self.order.append(place)
            if place == self.until:
                raise Enough
            return self.outputs[-1]

        return run


class Skipping:
    """Makes forwards that compute nothing while there are states: the last one returns these.

    Args:
        parts: as in `LowerLayers`.
    """

    def __init__(self, parts: Sequence[int]) -> None:
        self.parts = parts
        self.states: torch.Tensor | None = None  # (tokens, hidden), of a batch's real tokens
        self.real: Any = None  # (texts, length), which these are

    def __call__(self, place: int, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.states is None:
                return forward(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if place == len(self.parts) - 1:
                hidden = _placed(self.states, self.real, hidden.shape[:2])
            return (hidden, *[None] * (self.parts[place] - 1)) if self.parts[place] else hidden

        return run


@contextmanager
def replaced(modules: Sequence[nn.Module], make: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Give modules other forwards inside the `with` block: `make` gets each one's place and its own."""
    before = [module.__dict__.get("forward") for module in modules]
    for place, module in enumerate(modules):
        module.__dict__["forward"] = make(place, module.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


@contextmanager
def evaluating(model: Any, number_format: str) -> Iterator[None]:
    """Have a model compute in a number format and without dropout, inside the `with` block."""
    kind = next(model.parameters()).device.type
    with at_rest(model), torch.autocast(kind, _AUTOCAST.get(number_format), enabled=number_format in _AUTOCAST):
        yield


def _check_kind(model: Any, name: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 or is_sharded(model) or torch.cuda.device_count() > 1:
        raise BackboneError(
            f"{KEY}: it works in one process on one device only, since each would need the whole cache. Start a single "
            "one (CUDA_VISIBLE_DEVICES=0), or leave the option out."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise BackboneError(f"{KEY}: {name} is an encoder-decoder, whose layers are two stacks and not one. {_WITHOUT}")
    if getattr(model.config, "layerdrop", 0):
        raise BackboneError(
            f"{KEY}: {name} leaves out layers by chance while it trains (layerdrop={model.config.layerdrop}), "
            f"and the lowest that runs must not be one of them. {_WITHOUT}"
        )


def _nothing_below(model: Any, lowest: torch.Tensor, count: int) -> str:
    """Word that something trained reaches the lowest layer's output, and what."""
    trained = {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(lowest.float().sum(), list(trained.values()), allow_unused=True)
    first, *more = [path for path, gradient in zip(trained, found, strict=True) if gradient is not None]
    others = f" (and {len(more)} more)" if more else ""
    return (
        f"{KEY}: there is nothing to cache, for '{first}'{others} is trained and reaches the output of layer 0. Adapt "
        f"upper layers only, e.g. adapter.layers={list(range(count // 2, count))}, and train nothing that changes the "
        "embeddings or reaches every layer (prompts, prefixes, new tokens); or leave the option out."
    )


def batch_of(collate: Callable[..., Any], rows: list[dict[str, Any]], model: Any) -> dict[str, Any]:
    """Return encoded rows as a batch on the model's device, without the task's notes on them."""
    device = next(model.parameters()).device
    batch = collate([{key: value for key, value in row.items() if not key.startswith("_")} for row in rows])
    return {key: value.to(device) for key, value in batch.items()}


def tokens_of(ids: Any) -> int:
    """Return the tokens of an encoded row, which may be several texts."""
    return sum(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)


def real_tokens(batch: dict[str, Any], lengths: list[int]) -> torch.Tensor:
    """Return a (texts, length) mask of a batch's real tokens; packed rows have none, and padding behind them."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None:
        mask = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
    if mask.shape != ids.shape or int(mask.sum()) != sum(lengths):
        raise BackboneError(f"{KEY}: a batch's attention mask isn't that of its rows' tokens. {_WITHOUT}")
    return mask.bool()


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden states of what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def packed(states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return (tokens, hidden) of states that are padded as a batch is, or packed already."""
    return states[real] if states.shape[:2] == real.shape else states[0]


def _placed(states: torch.Tensor, real: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return (tokens, hidden) as layers are given them: padded as the batch is, or packed into one row."""
    if shape != real.shape:
        return states[None]
    placed = states.new_zeros(*shape, states.shape[-1])
    placed[real] = states
    return placed


def _same(some: torch.Tensor, others: torch.Tensor) -> bool:
    return torch.allclose(some.float(), others.float(), rtol=1e-3, atol=1e-3 * float(some.abs().max()))
