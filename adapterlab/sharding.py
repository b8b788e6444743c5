"""Adapters whose parameters are shared out among processes: `torch.distributed.fsdp.fully_shard`, `accelerate launch`.

Each process then holds a part of each tensor. What looks at whole tensors does it inside `whole`, which every process
enters together: they gather the parts from one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from adapterlab.errors import AdapterError
from adapterlab.guests import need_guests


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds but a part of the model."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharding = (FSDPModule, FullyShardedDataParallel)
    return any(isinstance(module, sharding) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def will_be_sharded() -> bool:
    """Whether the launcher told accelerate to share the model out when training begins."""
    return _launched_with("FSDP") or _launched_with("DEEPSPEED")


def _launched_with(plugin: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true"


@contextmanager
def whole(model: nn.Module, given: Mapping[str, torch.Tensor] | None = None, *, change: bool = False) -> Iterator[None]:
    """Have whole tensors in place of the adapters' sharded ones; nothing is done where none are.

    Args:
        model: a model with adapters.
        given: a whole state dict, where one process alone has it: nothing is gathered then.
        change: whether what the block does to parameters and gradients goes back into the parts; it must do the
            same in every process.

    Raises:
        AdapterError: it was sharded the old way, which leaves no tensor as it was.
    """
    shards = _shards(model) if is_sharded(model) else {}
    try:
        wholes = {}
        for path, (_, _, shard) in shards.items():
            full = shard.full_tensor() if given is None else given[path]
            wholes[path] = nn.Parameter(full.detach(), requires_grad=shard.requires_grad)
            if change and shard.grad is not None:
                wholes[path].grad = shard.grad.full_tensor()
        for path, (module, key, _) in shards.items():
            module._parameters[key] = wholes[path]
        yield
        for path, (_, _, shard) in shards.items():
            if change:
                _put_back(wholes[path].detach(), shard.detach())
                if shard.grad is not None:
                    _put_back(wholes[path].grad, shard.grad)
    finally:
        for module, key, shard in shards.values():
            module._parameters[key] = shard


@contextmanager
def callable_inside(model: nn.Module) -> Iterator[None]:
    """Allow to call the model's base model by itself; its layers gather their own parts, but nobody the rest."""
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        if isinstance(model, FSDPModule):
            model.unshard()
    yield
    reshard(model)


def reshard(model: nn.Module) -> None:
    """Let go of gathered parts: a forward without a backward leaves some."""
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def load_everywhere() -> None:
    """Have each process load the backbone's weights, not the first one alone, which is accelerate's default for FSDP.

    An adapter starts from them, and what it is compared with is the head as it was.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard_by_layer(model: Any) -> None:
    """Have accelerate share out layer by layer; by itself it takes BERT's embeddings twice, and fails.

    Raises:
        AdapterError: FSDP is on, and an adapter's method can't be shared out.
    """
    unshared = [guest for guest in need_guests(model).adapters.values() if not guest.method.shards]
    if unshared and _launched_with("FSDP"):
        raise AdapterError(
            f"adapter '{unshared[0].name}' ({unshared[0].method_name}) can't be trained under FSDP, which would share "
            "out its parameters. Launch without --use_fsdp (each process then holds the whole), or take another method."
        )
    layers = need_guests(model).backbone.layers
    model._no_split_modules = {type(model.get_submodule(path)).__name__ for path in layers}


def joins(model: nn.Module, writes: bool) -> bool:
    """Whether a process takes part in saving: the one that writes, and all that hold a part."""
    return writes or is_sharded(model)


def _shards(model: nn.Module) -> dict[str, tuple[nn.Module, str, Any]]:
    """Return the adapters' sharded parameters by path, each with the module and the name that it has there."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise AdapterError(
            "FSDP 1 flattens each layer's parameters into one tensor, in which adapters can't be told from the "
            "backbone. Take FSDP 2: torch.distributed.fsdp.fully_shard, or accelerate launch --use_fsdp "
            "--fsdp_version 2."
        )
    reshard(model)
    paths: dict[str, None] = {}
    for guest in need_guests(model).adapters.values():
        paths |= dict.fromkeys([*guest.trained(model), *guest.method.training_state(model, guest.name)])
    found: dict[str, tuple[nn.Module, str, Any]] = {}
    for path in paths:
        owner, _, key = path.rpartition(".")
        parameter = model.get_submodule(owner)._parameters.get(key)
        if isinstance(parameter, DTensor):
            found[path] = (model.get_submodule(owner), key, parameter)
    return found


def _put_back(full: Any, shard: Any) -> None:
    from torch.distributed.tensor import distribute_tensor

    # every process has the whole: each takes its part, and nothing is sent
    part = distribute_tensor(full, shard.device_mesh, shard.placements, src_data_rank=None)
    with torch.no_grad():
        shard.to_local().copy_(part.to_local())
