"""Prefix tuning: one flat tensor here, flat or behind an MLP there. Both order it alike."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers.activations import ACT2FN

from adapterlab.adapters import PrefixConfig
from adapterlab.converting.fields import PREFIX, Tensors, check, only, refusal, rename, typed
from adapterlab.converting.names import Architecture

_READ = {"flat", "non_linearity", "prefix_length"}
_WRITTEN = {
    "encoder_hidden_size", "init", "init_std", "modules_to_save", "num_virtual_tokens", "prefix_projection",
    "preserve_positions",
}  # fmt: skip
# Where the library's default attention (sdpa) computes a prefix in another way than its own 'eager' one, and we do.
SDPA_DIFFERS = {"distilbert", "gpt2", "llama", "mistral"}
OURS = "prompt_embeddings"
_MLP = (
    "wte.weight",
    "control_trans.0.weight",
    "control_trans.0.bias",
    "control_trans.2.weight",
    "control_trans.2.bias",
)


def to_ours(
    config: dict[str, Any], tensors: Tensors, architecture: Architecture, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return options and tensors of our method, given AdapterHub's config and tensors; an MLP is folded away.

    Tensors' names are from the base model, without the adapter's name.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    config = check(config, _READ, source)
    typed(config, {"prefix_length": (int,), "flat": (bool,), "non_linearity": (str,)}, source)
    _check_architecture(architecture, source)
    pool, length = _pool(architecture), config["prefix_length"]
    parts = ("control_trans",) if config["flat"] else _MLP
    # the library names the pool's tensors again in each layer
    own = {name: tensor for name, tensor in tensors.items() if not _is_copy(name, tensor, tensors)}
    found = rename(own, {f"{pool}.{part}": part for part in parts}, source)
    problem = [f"prefix_length={length}: the prefix has the shape {[list(found[part].shape) for part in parts]}."]
    if config["flat"]:
        flat = found["control_trans"]
        if length < 1 or flat.numel() % length:
            raise refusal(source, problem)
        return _options(length), {OURS: flat.reshape(length, -1)}
    embedding, first, first_bias, last, last_bias = (found[part].float() for part in _MLP)
    if embedding.shape[0] != length:
        raise refusal(source, problem)
    activation = config["non_linearity"].lower().replace("leakyrelu", "leaky_relu")
    if activation not in ACT2FN:
        raise refusal(source, [f"non_linearity={config['non_linearity']!r}: no such activation is known."])
    hidden = ACT2FN[activation](torch.nn.functional.linear(embedding, first, first_bias))
    return _options(length), {OURS: torch.nn.functional.linear(hidden, last, last_bias)}


def to_hub(
    config: PrefixConfig, tensors: Tensors, architecture: Architecture, source: object
) -> tuple[dict[str, Any], Tensors]:
    """Return AdapterHub's config and tensors: a flat prefix.

    Raises:
        AdapterFolderError: something has no counterpart, or a tensor is missing or too many.
    """
    only(config, _WRITTEN, source)
    _check_architecture(architecture, source)
    if not config.preserve_positions:
        raise refusal(
            source,
            [
                "preserve_positions=False: here, as in peft, the tokens' positions begin behind the prefix; "
                "in AdapterHub they stay. Train with preserve_positions=True."
            ],
        )
    found = rename(tensors, {OURS: f"{_pool(architecture)}.control_trans"}, source)
    return PREFIX | {"flat": True, "prefix_length": config.num_virtual_tokens}, {
        name: tensor.reshape(-1) for name, tensor in found.items()
    }


def peft_fields(config: PrefixConfig, hidden_size: int | None) -> dict[str, Any]:
    """Return adapter_config.json's fields; what only the backbone knows is left to it."""
    fields = peft.PrefixTuningConfig(
        num_virtual_tokens=config.num_virtual_tokens,
        num_transformer_submodules=1,
        encoder_hidden_size=hidden_size,
        prefix_projection=False,
    )
    return fields.to_dict() | {"preserve_positions": True}


def _options(length: int) -> dict[str, Any]:
    return {"num_virtual_tokens": length, "preserve_positions": True}


def _pool(architecture: Architecture) -> str:
    return f"prefix_tuning.prefix_tunings.{architecture.stacks[0].names.prefix}"


def _is_copy(name: str, tensor: torch.Tensor, tensors: Tensors) -> bool:
    _, mark, rest = name.partition(".prefix_tuning.pool.")
    original = tensors.get(f"prefix_tuning.{rest}")
    return bool(mark) and original is not None and torch.equal(original, tensor)


def _check_architecture(architecture: Architecture, source: object) -> None:
    anatomy = architecture.stacks[0].anatomy
    if anatomy.attention is None:
        raise refusal(source, [f"prefix tuning doesn't work on {architecture.model_type} here: {anatomy.no_prefix}."])
