"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from adapterlab.errors import ConfigError
from adapterlab.guests import need_guests
from adapterlab.recipe.schema import OptimSection

_LORA_B = ("lora_B", "lora_embedding_B")


def parameter_groups(model: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    """Return an optimizer's groups of what is trained: by rate (adapter, LoRA+'s B matrices, head) and by decay.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B starts at zero and wants a rate `lora_plus` times that of A.

    Raises:
        ConfigError: `lora_plus` is set and the adapter has no B matrices.
    """
    guests = need_guests(model)
    heads = tuple(f"{path}." for name in guests.active for path in guests.adapters[name].heads)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    found = False
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = optim.lr
        if path.startswith(heads):
            lr = optim.head_lr or lr
        elif optim.lora_plus is not None and any(part in _LORA_B for part in path.split(".")):
            found, lr = True, lr * optim.lora_plus
        groups[lr, optim.weight_decay if _decays(path, parameter) else 0.0].append(parameter)
    if optim.lora_plus is not None and not found:
        methods = ", ".join(guests.adapters[name].method_name for name in guests.active)
        raise ConfigError(
            f"optim.lora_plus: the adapter ({methods}) has no B matrices for a rate of their own. Leave it out, or "
            "use adapter.method=lora or adalora."
        )
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]


def _decays(path: str, parameter: nn.Parameter) -> bool:
    """Whether decay belongs on a parameter: a matrix that multiplies features, no bias, norm, factor or embedding."""
    return parameter.ndim > 1 and min(parameter.shape) > 1 and not {"embedding", "new_tokens"} & set(path.split("."))
