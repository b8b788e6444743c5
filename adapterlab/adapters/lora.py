"""LoRA: low-rank updates of linear layers (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import peft
from peft.tuners.lora import LoraLayer
from pydantic import AliasChoices, BeforeValidator, Field

from adapterlab.adapters.base import register_method
from adapterlab.adapters.lora_algebra import combined
from adapterlab.adapters.targets import plain
from adapterlab.adapters.tuner import TunerConfig, TunerMethod
from adapterlab.errors import ConfigError, did_you_mean

# Fields of peft's adapter_config.json that change the forward pass in ways this method doesn't have.
_FOREIGN = ("use_dora", "use_qalora", "lora_bias", "alora_invocation_tokens", "layer_replication",
            "target_parameters", "trainable_token_indices")  # fmt: skip
# Starts that rewrite the backbone's weights: without the very same rewrite the adapter means something else.
_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _read_init(value: Any) -> Any:
    return "default" if value is True else value


class LoraConfig(TunerConfig):
    """Options of LoRA."""

    r: int = Field(8, ge=1, description="rank of the update BA")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    init: Annotated[Literal["default", "gaussian", "orthogonal"], BeforeValidator(_read_init)] = Field(
        "default",
        validation_alias=AliasChoices("init", "init_lora_weights"),
        description="start of A: 'default' (Kaiming uniform, B zero), 'gaussian' (B zero), 'orthogonal'",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="rank by name ending, where it differs from r"
    )
    alpha_pattern: dict[str, float] = Field({}, description="alpha by name ending, where it differs")


@register_method("lora")
class Lora(TunerMethod):
    r"""LoRA: `h = W x + (alpha / r) B A dropout(x)`, equation 3 of Hu et al. 2021, arXiv:2106.09685.

    `A` is (r, in), `B` is (out, r) and starts at zero, so an untrained adapter changes nothing. `W` is frozen.
    The modules and the file format are peft's.
    """

    summary = "low-rank updates of the linear layers; the one to start with"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    Config = LoraConfig
    peft_type = "LORA"
    marker = "lora_"
    layer_class = LoraLayer

    def layers(self, model: Any) -> dict[str, Any]:
        """Return LoRA's layers; AdaLoRA's subclass them and are not LoRA's."""
        return {path: layer for path, layer in super().layers(model).items() if not hasattr(layer, "lora_E")}

    def peft_config(self, config: LoraConfig) -> peft.LoraConfig:
        """Return peft's config."""
        return peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            use_rslora=config.use_rslora,
            init_lora_weights=True if config.init == "default" else config.init,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
        )

    def check_targets(self, config: LoraConfig, paths: list[str]) -> None:
        """Refuse a pattern that fits no target."""
        for option, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
            for ending in pattern:
                if not any(path == ending or path.endswith("." + ending) for path in paths):
                    near = did_you_mean(ending, {path.rsplit(".", 1)[-1] for path in paths})
                    raise ConfigError(f"{option}: no target's name ends with '{ending}'.{near}")

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields.

        Raises:
            ConfigError: the file uses a variant of LoRA that isn't here.
        """
        foreign = [name for name in _FOREIGN if fields.get(name)]
        init = str(fields.get("init_lora_weights")).lower()
        if foreign or init.startswith(_REWRITING):
            what = foreign[0] if foreign else f"init_lora_weights={init}, which rewrites the backbone's weights"
            raise ConfigError(f"{what}: this variant of LoRA can't be loaded here; load it with peft, merge it there.")
        return super().from_peft(fields, keys) | {
            "r": fields["r"],
            "alpha": fields["lora_alpha"],
            "dropout": fields.get("lora_dropout", 0.0),
            "use_rslora": fields.get("use_rslora", False),
            "rank_pattern": fields.get("rank_pattern") or {},
            "alpha_pattern": fields.get("alpha_pattern") or {},
        }

    def combine(
        self, model: Any, parts: dict[str, tuple[Any, float]], how: str, r: int | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the weighted sum of LoRAs as the options and state of a new one.

        Raises:
            ConfigError: one of them is more than a sum of matrices (DoRA, trained biases).
        """
        for name, (config, _) in parts.items():
            more = [
                key
                for key in ("use_dora", "lora_bias", "bias")
                if getattr(config, key, None) not in (None, False, "none")
            ]
            if more:
                raise ConfigError(f"adapter '{name}' has {more[0]}, which has no weighted sum; merge it instead.")
        layers = {plain(path): layer for path, layer in self.layers(model).items()}
        state, rank = combined(layers, {name: weight for name, (_, weight) in parts.items()}, how, r)
        first = next(iter(parts.values()))[0]
        saved = sorted({ending for config, _ in parts.values() for ending in config.modules_to_save})
        targets = sorted({key.split(".lora_")[0] for key in state})
        return {
            "r": rank,
            "alpha": rank,
            "dropout": first.dropout,
            "target_modules": targets,
            "modules_to_save": saved,
        }, state
