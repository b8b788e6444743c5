"""What a few batches tell about linears: second moments of their inputs, gradients of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adapterlab.backbones import at_rest
from adapterlab.errors import ConfigError


@dataclass
class Moments:
    """Sums over tokens: how many, of x (in,), of x xᵀ (in, in); in fp32."""

    count: int
    first: torch.Tensor
    second: torch.Tensor


def moments(model: nn.Module, linears: Mapping[str, nn.Module], batches: Sequence[Any]) -> dict[str, Moments]:
    """Return the moments of each linear's inputs over the batches; padding, as the attention mask has it, aside.

    Raises:
        ConfigError: the model can't run a batch, or a linear saw none.
    """
    found: dict[str, Moments] = {}
    mask: torch.Tensor | None = None

    def hook_of(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            x = x[mask.bool()] if mask is not None and x.shape[:-1] == mask.shape else x.flatten(0, -2)
            x = x.float()
            now = Moments(len(x), x.sum(0), x.T @ x)
            if path in found:
                before = found[path]
                now = Moments(before.count + now.count, before.first + now.first, before.second + now.second)
            found[path] = now

        return note

    handles = [linear.register_forward_pre_hook(hook_of(path)) for path, linear in linears.items()]
    try:
        with at_rest(model), torch.no_grad():
            for inputs in _on_device(model, batches):
                mask = None if getattr(model.config, "is_encoder_decoder", False) else inputs.get("attention_mask")
                _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    _need_all(linears, found)
    return found


def gradients(model: nn.Module, linears: Mapping[str, nn.Module], batches: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return the gradient of the batches' mean loss with respect to each linear's weight, in fp32.

    Raises:
        ConfigError: the model can't run a batch, gives no loss, or a linear has no part in it.
    """
    weights: dict[str, Any] = {path: linear.weight for path, linear in linears.items()}
    wanted = {path: weight.requires_grad for path, weight in weights.items()}
    total: dict[str, torch.Tensor] = {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with at_rest(model), torch.enable_grad():
            for inputs in _on_device(model, batches):
                loss = getattr(_run(model, inputs), "loss", None)
                if loss is None:
                    raise ConfigError(
                        "init_batches: the model gave no loss, and 'lora_ga' starts from its gradient: "
                        "put labels into the batches."
                    )
                for path, gradient in zip(
                    weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True
                ):
                    if gradient is not None:
                        total[path] = total.get(path, 0) + gradient.float() / len(batches)
    finally:
        for path, weight in weights.items():
            weight.requires_grad_(wanted[path])
    _need_all(linears, total)
    return total


def _run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    try:
        return model(**inputs)
    except Exception as error:
        raise ConfigError(
            f"init_batches: the model can't run a batch of {', '.join(inputs)} ({type(error).__name__}: {error}). "
            "Give what you would call it with: a list of {'input_ids': ..., 'attention_mask': ..., 'labels': ...}."
        ) from error


def _need_all(linears: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing = [path for path in linears if path not in found]
    if missing:
        raise ConfigError(
            f"init_batches: '{missing[0]}' took no part when the batches were run. Leave it out of target_modules."
        )


def _on_device(model: nn.Module, batches: Sequence[Any]) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    for batch in batches:
        yield {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
