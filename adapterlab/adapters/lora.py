"""LoRA: low-rank updates of linear layers and embeddings (Hu et al. 2021), with its variants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import peft
import torch
from peft.tuners.lora import LoraLayer
from pydantic import AliasChoices, BeforeValidator, Field, model_validator
from torch import nn

from adapterlab.adapters.base import METHODS, register_method
from adapterlab.adapters.biases import copy_biases, forget_biases, lend_biases, merge_biases, saved_biases
from adapterlab.adapters.lora_algebra import combined
from adapterlab.adapters.lora_fields import injected_pattern, read_fields, written_pattern
from adapterlab.adapters.lora_inits import FROM_DATA, NONZERO, SIMPLE, factors, forget, initialize, read_init, starts_of
from adapterlab.adapters.lora_layer import quicken
from adapterlab.adapters.patterns import check_patterns
from adapterlab.adapters.targets import is_inside, own_modules, plain
from adapterlab.adapters.tuner import TunerConfig, TunerMethod, by_pattern, check_ranks
from adapterlab.backbones import LINEAR, Backbone, Found
from adapterlab.errors import AdapterError, ConfigError


class LoraConfig(TunerConfig):
    """Options of LoRA."""

    r: int = Field(8, ge=1, description="rank of the update BA")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    use_dora: bool = Field(False, description="DoRA: learn the magnitude of each output by itself (Liu et al. 2024)")
    lora_bias: bool = Field(False, description="give B a bias, for updates that were extracted from full fine-tuning")
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="also train biases of the backbone: the adapted modules' ('lora_only'), or 'all'"
    )
    init: Annotated[str, BeforeValidator(read_init)] = Field(
        "default",
        validation_alias=AliasChoices("init", "init_lora_weights"),
        description="start: 'default' (A Kaiming uniform, B zero), 'gaussian' (A normal, B zero), 'orthogonal', "
        "'random'; from the weights 'pissa', 'pissa_niter_[n]', 'olora'; from init_batches 'eva', 'corda', 'lora_ga'",
    )
    init_batches: list[Any] | None = Field(
        None, exclude=True, description="what the model is called with, a few batches, for a start from data; not saved"
    )
    rank_pattern: Annotated[dict[str, Annotated[int, Field(ge=1)]], BeforeValidator(check_patterns)] = Field(
        {}, description="rank by name ending or glob, where it differs from r; the first that matches counts"
    )
    alpha_pattern: Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(check_patterns)] = Field(
        {}, description="alpha by name ending or glob, where it differs"
    )

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        if self.lora_bias and self.use_dora:
            raise ValueError("lora_bias and use_dora don't go together: DoRA rescales B A, and a bias is no part of it")
        if self.lora_bias and self.init not in ("default", "random"):
            raise ValueError(f"lora_bias goes with init 'default' or 'random', not '{self.init}'")
        if self.use_dora and self.init.startswith(NONZERO):
            raise ValueError(f"use_dora starts from magnitudes of the whole weight, and init '{self.init}' from a part")
        if self.init in FROM_DATA and not self.init_batches:
            raise ValueError(
                f"init '{self.init}' starts from data: give init_batches, a list of what the model is called with, "
                "[{'input_ids': ..., 'attention_mask': ...}, ...]"
            )
        if self.init_batches and self.init not in FROM_DATA:
            raise ValueError(f"init_batches are for init {', '.join(FROM_DATA)}, and init is '{self.init}'")
        if not all(hasattr(batch, "items") for batch in self.init_batches or []):
            raise ValueError("init_batches is a list of mappings, [{'input_ids': ..., 'attention_mask': ...}, ...]")
        return self


@register_method("lora")
class Lora(TunerMethod):
    r"""LoRA: `h = W x + (alpha / r) B A dropout(x)`, equation 3 of Hu et al. 2021, arXiv:2106.09685.

    `A` is (r, in), `B` is (out, r) and starts at zero, so an untrained adapter changes nothing. `W` is frozen.
    With `use_dora` it is `h = m (W + (alpha / r) B A) x / ||W + (alpha / r) B A||`, equation 5 of Liu et al. 2024,
    arXiv:2402.09353, where `m` is (out,) and the norm is of each row. An embedding's `A` is (r, vocabulary).
    The modules and the file format are peft's.
    """

    summary = "low-rank updates of the linear layers; the one to start with"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    Config = LoraConfig
    peft_type = "LORA"
    marker = "lora_"
    layer_class = LoraLayer
    kinds = (*LINEAR, nn.Embedding)

    def layers(self, model: Any) -> dict[str, Any]:
        """Return LoRA's layers; AdaLoRA's subclass them and are not LoRA's."""
        return {path: layer for path, layer in super().layers(model).items() if not hasattr(layer, "lora_E")}

    def peft_config(self, config: LoraConfig) -> peft.LoraConfig:
        """Return peft's config."""
        init = {"default": True, "random": False}.get(config.init, config.init if config.init in SIMPLE else True)
        return peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            lora_bias=config.lora_bias,
            bias=config.bias,
            init_lora_weights=init,
        )

    def fit(self, settings: peft.LoraConfig, config: LoraConfig, targets: list[Found]) -> None:
        """Refuse what the targets can't have; tell peft their ranks."""
        ranks = by_pattern("rank_pattern", config.rank_pattern, targets, config.r)
        alphas = by_pattern("alpha_pattern", config.alpha_pattern, targets, config.alpha)
        check_ranks("r", ranks, targets, config.oversized_rank and config.init in SIMPLE)
        odd = next((path for path, rank in ranks.items() if rank % 2), None)
        if config.init == "orthogonal" and odd:
            raise ConfigError(f"init: 'orthogonal' needs an even rank, and '{odd}' has rank {ranks[odd]}.")
        embedding = next((path for path, module in targets if isinstance(module, nn.Embedding)), None)
        if embedding and (config.lora_bias or config.init not in ("default", "random")):
            what = "lora_bias" if config.lora_bias else f"init '{config.init}'"
            raise ConfigError(
                f"target_modules: '{embedding}' is an embedding, which {what} doesn't do. "
                "Give embeddings an adapter of their own, or leave the option out."
            )
        settings.rank_pattern = injected_pattern(ranks, config.r)
        settings.alpha_pattern = injected_pattern(alphas, config.alpha)

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: LoraConfig) -> None:
        """Wrap the targets, start A and B, copy the biases that are to be trained."""
        super().inject(model, backbone, name, config)
        own = self.own_layers(model, name)
        quicken(own.values())
        if config.init in FROM_DATA:
            for _, method in METHODS:  # what the backbone alone makes of the data
                method.activate(model, [])
        initialize(model, own, name, config.init, config.init_batches)
        for layer in own.values() if config.use_dora else ():
            a, b = _factors(layer, name)  # once more, now that they are in fp32: peft took the norms in W's dtype
            layer.lora_magnitude_vector[name].update_layer(
                base_layer=layer.get_base_layer(), lora_A=a, lora_B=b, scaling=layer.scaling[name]
            )
        if config.bias == "none":
            return
        trained = [layer.get_base_layer() for layer in own.values()]
        if config.bias == "all":
            in_full = [*backbone.heads, *config.modules_to_save]
            trained = [module for path, module in own_modules(model) if not is_inside(plain(path), in_full)]
        if not copy_biases(trained, name):
            where = "target" if config.bias == "lora_only" else "module"
            raise ConfigError(
                f"bias: '{config.bias}' trains biases, and no {where} of this model has one. Leave it out."
            )

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the terms, their starts and the biases."""
        own = self.own_layers(model, name)
        super().remove(model, name)
        forget(own, name)
        forget_biases(model, name)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Switch the wrappers; lend the modules the biases of the last adapter that has some."""
        super().activate(model, names)
        lend_biases(model, names)

    def merge(self, model: nn.Module, name: str, config: LoraConfig) -> None:
        """Add the updates to the weights, in fp32, and put the trained biases in place."""
        for path, layer in self.own_layers(model, name).items():
            if config.lora_bias and layer.get_base_layer().bias is None:
                raise AdapterError(f"lora_bias can't be merged: '{path}' has no bias to take it up. Use it attached.")
        super().merge(model, name, config)
        merge_biases(model, name)

    def state(self, model: nn.Module, name: str, config: LoraConfig) -> dict[str, torch.Tensor]:
        """Return what is saved, by peft's keys: where a start is taken off, a plain LoRA of twice the rank."""
        own = self.own_layers(model, name)
        saved = {key: parameter.detach().clone() for key, parameter in self._saved(model, name).items()}
        for path, layer in own.items():
            if name in starts_of(layer):
                saved[f"{path}.lora_A.weight"], saved[f"{path}.lora_B.weight"] = factors(layer, name)
        return saved

    def load_state(self, model: nn.Module, name: str, config: LoraConfig, state: dict[str, torch.Tensor]) -> None:
        """Copy saved tensors into an adapter that has no start to take off."""
        with torch.no_grad():
            for key, parameter in self._saved(model, name).items():
                parameter.copy_(state[key])

    def is_ballast(self, model: nn.Module, key: str, tensor: torch.Tensor) -> bool:
        """Whether peft wrote it along: the head before training, or an adapted embedding's own weight."""
        if not key.endswith(".base_layer.weight"):
            return ".original_module." in key or ".modules_to_save." in key
        frozen = next((p for path, p in model.named_parameters() if plain(path) == plain(key)), None)
        return frozen is not None and torch.equal(frozen, tensor.to(frozen))

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: LoraConfig) -> dict[str, Any]:
        """Return peft's fields, for the tensors as `state` gives them; how they started doesn't matter any more."""
        own = self.own_layers(model, name)
        times = 2 if any(name in starts_of(layer) for layer in own.values()) else 1
        alpha_times = times**0.5 if config.use_rslora else times  # the scaling stays
        ranks = {path: layer.r[name] for path, layer in own.items()}
        alphas = {path: layer.lora_alpha[name] for path, layer in own.items()}
        rank_pattern = written_pattern(config.rank_pattern, ranks, config.r)
        alpha_pattern = written_pattern(config.alpha_pattern, alphas, config.alpha)
        return super().to_peft(model, backbone, name, config) | {
            "r": config.r * times,
            "lora_alpha": config.alpha * alpha_times,
            "rank_pattern": {key: rank * times for key, rank in rank_pattern.items()},
            "alpha_pattern": {key: alpha * alpha_times for key, alpha in alpha_pattern.items()},
            "init_lora_weights": True,
        }

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields.

        Raises:
            ConfigError: the file uses a variant of LoRA that isn't here.
        """
        keys = list(keys)
        options = super().from_peft(fields, keys)
        return options | read_fields(fields, options["target_modules"], keys)

    def _saved(self, model: nn.Module, name: str) -> dict[str, nn.Parameter]:
        """Return the trained parameters by the keys that peft gives them; tied biases are there twice."""
        parameters = self.parameters(model, name).items()
        found = {self._key(path, name): p for path, p in parameters if ".lora_biases." not in path}
        return found | saved_biases(model, name, lambda: self.own_layers(model, name))

    def _key(self, path: str, name: str) -> str:
        key = super()._key(path, name)
        return key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key

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
            "oversized_rank": True,
        }, state


def _factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name].data, layer.lora_embedding_B[name].data
    return layer.lora_A[name].weight.data, layer.lora_B[name].weight.data
