"""LoRA's fields in peft's adapter_config.json: what the options become there, and what is read from there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from adapterlab.adapters.lora_inits import NONZERO
from adapterlab.adapters.patterns import is_glob, matches
from adapterlab.errors import ConfigError

T = TypeVar("T")

# Fields that change the forward pass in ways this method doesn't have.
_FOREIGN = ("use_qalora", "alora_invocation_tokens", "layer_replication", "target_parameters",
            "trainable_token_indices", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora")  # fmt: skip


def injected_pattern(values: Mapping[str, T], otherwise: T) -> dict[str, T]:
    """Return values of modules as peft takes them: one regular expression, ours, for each value that is another."""
    paths: dict[T, list[str]] = {}
    for path, value in values.items():
        if value != otherwise:
            paths.setdefault(value, []).append(re.escape(path))
    return {"|".join(found): value for value, found in paths.items()}


def written_pattern(patterns: Mapping[str, T], values: Mapping[str, T], otherwise: T) -> dict[str, T]:
    """Return values of modules as a file has them: the user's name endings, or where those aren't enough, paths.

    peft knows no globs, and sorts the keys, so that where several match not the first is taken.
    """
    clear = all(len({value for key, value in patterns.items() if matches(key, path)}) < 2 for path in values)
    if clear and not any(is_glob(key) for key in patterns):
        return dict(patterns)
    return {path: value for path, value in values.items() if value != otherwise}


def read_fields(fields: Mapping[str, Any], targets: list[str], keys: Iterable[str]) -> dict[str, Any]:
    """Return LoRA's options from peft's fields.

    Args:
        targets: paths of the modules that the file adapts.
        keys: of the file's tensors.

    Raises:
        ConfigError: the file uses a variant of LoRA that isn't here.
    """
    foreign = [name for name in _FOREIGN if fields.get(name)]
    init = str(fields.get("init_lora_weights")).lower()
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: this variant of LoRA can't be loaded here; load it with peft, merge it there."
        )
    if init.startswith((*NONZERO, "loftq")):
        raise ConfigError(
            f"init_lora_weights={init}, which rewrites the backbone's weights: without the very same rewrite the "
            "adapter means something else, so it can't be loaded here. Save it again as a plain LoRA: peft_model."
            "save_pretrained(folder, path_initial_model_for_weight_conversion=START), where START is the folder saved "
            "before training."
        )
    bias = fields.get("bias") or "none"
    has_biases = any(key.endswith(".bias") and ".lora_" not in key for key in keys)
    return {
        "r": fields["r"],
        "alpha": fields["lora_alpha"],
        "dropout": fields.get("lora_dropout", 0.0),
        "use_rslora": fields.get("use_rslora", False),
        "use_dora": fields.get("use_dora", False),
        "lora_bias": fields.get("lora_bias", False),
        "bias": bias if has_biases else "none",
        "init": "default",
        "rank_pattern": _read_pattern("rank_pattern", fields, targets),
        "alpha_pattern": _read_pattern("alpha_pattern", fields, targets),
    }


def _read_pattern(option: str, fields: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """Read peft's patterns: regular expressions, of which only name endings and paths are understood."""
    patterns = fields.get(option) or {}
    if not isinstance(patterns, dict):
        raise ConfigError(f"{option} must be a mapping, and is a {type(patterns).__name__}.")
    found = {}
    for key, value in patterns.items():
        ending = str(key).removeprefix("^").removesuffix("$").replace("\\.", ".")
        if re.search(r"[^\w.-]", ending):
            raise ConfigError(
                f"{option}: '{key}' is a regular expression, and only names of modules are read. Write them out."
            )
        if any(matches(ending, target) for target in targets):  # peft's may name modules that aren't there
            found[ending] = value
    return found
