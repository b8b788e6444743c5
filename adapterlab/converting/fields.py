"""AdapterHub's configs: every field of each architecture, and which values have a meaning here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adapterlab.errors import AdapterFolderError, did_you_mean

Tensors = dict[str, torch.Tensor]
VERSION = "adapters.1.3.0"  # the library whose folders these are

# Every field with its default there.
BOTTLENECK: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 16,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
LORA: dict[str, Any] = {
    "alpha": 8,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.0,
    "dtype": None,
    "init_weights": "lora",
    "init_weights_seed": None,
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 8,
    "selfattn_lora": True,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
PREFIX: dict[str, Any] = {
    "architecture": "prefix_tuning",
    "bottleneck_size": 512,
    "cross_prefix": True,
    "dropout": 0.0,
    "encoder_prefix": True,
    "flat": False,
    "init_weights_seed": None,
    "leave_out": [],
    "non_linearity": "tanh",
    "prefix_length": 30,
    "shared_gating": True,
    "use_gating": False,
}
# Fields that may have any value: they say how training started, or belong to a part that is switched off.
_OF_NO_MATTER = {
    "adapter_residual_before_ln", "bottleneck_size", "cross_prefix", "dtype", "encoder_prefix", "factorized_phm_W",
    "factorized_phm_rule", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
    "inv_adapter_reduction_factor", "learn_phm", "phm_bias", "phm_c_init", "phm_dim", "phm_init_range", "phm_rank",
    "shared_W_phm", "shared_gating", "shared_phm_rule",
}  # fmt: skip
_WHY = {
    "composition_mode": "'scale' multiplies, as (IA)³ does, and LoRA adds",
    "cross_adapter": "there are no adapters at cross-attention here",
    "dropout": "there is none on a prefix here; it acts in training only, so set it to 0.0 in the file if that is over",
    "inv_adapter": "there are no invertible adapters here",
    "phm_layer": "there are no hypercomplex layers (Compacter) here",
    "stochastic_depth": "it acts in training only: set it to 0.0 in the file if that is over",
    "use_gating": "there are no gates here",
}
_ARCHITECTURES = {None: BOTTLENECK, "bottleneck": BOTTLENECK, "lora": LORA, "prefix_tuning": PREFIX}


def check(config: dict[str, Any], read: set[str], source: object) -> dict[str, Any]:
    """Return a config with every field of its architecture, those it leaves out at their defaults.

    Args:
        config: what adapter_config.json has under "config".
        read: the fields that the caller makes something of; all others must be as they are by default.
        source: the file, for messages.

    Raises:
        AdapterFolderError: everything in it that can't be expressed here.
    """
    defaults = defaults_of(config, source)
    problems = []
    for field, value in config.items():
        if field == "architecture":
            continue
        if field not in defaults and value is not None:
            problems.append(f"{field}={value!r}: no such field is known.{did_you_mean(field, defaults)}")
        elif field in defaults and field not in read and field not in _OF_NO_MATTER and value != defaults[field]:
            why = _WHY.get(field, "there is nothing like it here")
            problems.append(f"{field}={value!r}: {why} (convertible is {defaults[field]!r}).")
    if problems:
        raise refusal(source, problems)
    return defaults | config


def defaults_of(config: dict[str, Any], source: object) -> dict[str, Any]:
    """Return the fields of a config's architecture.

    Raises:
        AdapterFolderError: this architecture isn't converted.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str | None) or architecture not in _ARCHITECTURES:
        raise refusal(
            source,
            [f"architecture={architecture!r} isn't converted. Converted are bottleneck adapters, LoRA, prefix tuning."],
        )
    return _ARCHITECTURES[architecture]


def typed(config: dict[str, Any], kinds: dict[str, tuple[type, ...]], source: object) -> None:
    """Check the types of fields.

    Raises:
        AdapterFolderError: a field holds something else.
    """
    problems = [
        f"{field}={config[field]!r}: {' or '.join(kind.__name__ for kind in allowed)} is needed."
        for field, allowed in kinds.items()
        if not isinstance(config[field], allowed) or (isinstance(config[field], bool) and bool not in allowed)
    ]
    if problems:
        raise refusal(source, problems)


def only(config: Any, handled: set[str], source: object) -> None:
    """Check that our options say nothing that AdapterHub has no field for.

    Raises:
        AdapterFolderError: an option outside `handled` isn't at its default.
    """
    defaults = type(config).model_fields
    problems = [
        f"{option}={value!r}: AdapterHub has nothing like it."
        for option, value in config.model_dump().items()
        if option not in handled and value != defaults[option].get_default(call_default_factory=True)
    ]
    if problems:
        raise refusal(source, problems)


def rename(tensors: Tensors, names: dict[str, str], source: object, missing: Sequence[str] = ()) -> Tensors:
    """Return the tensors under their new names.

    Raises:
        AdapterFolderError: some are missing, or there are some that `names` doesn't have.
    """
    problems = [f"missing: {name}" for name in (*missing, *(name for name in names if name not in tensors))]
    problems += [f"unexpected: {name} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in names]
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        raise refusal(source, ["its tensors are not those that its config asks for.", *problems[:12], *more])
    return {names[name]: tensor for name, tensor in tensors.items()}


def refusal(source: object, problems: list[str]) -> AdapterFolderError:
    """Word what can't be converted."""
    lines = problems if len(problems) == 1 else ["", *(f"  {problem}" for problem in problems)]
    return AdapterFolderError(f"'{source}' can't be converted: " + "\n".join(lines))


def number(value: float) -> int | float:
    """Return whole numbers as int, as the library writes them."""
    return int(value) if float(value).is_integer() else value
