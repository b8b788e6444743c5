"""Prefix tuning: trained keys and values that every layer attends to (Li & Liang 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import peft
import torch
from pydantic import AliasChoices, Field, model_validator
from torch import nn

from adapterlab.adapters.base import Method, MethodConfig, register_method
from adapterlab.adapters.prefix_attention import (
    PositionShift,
    PrefixSite,
    PrefixState,
    own_attention,
    position_rows,
)
from adapterlab.backbones import Backbone, head_geometry, hidden_size
from adapterlab.errors import BackboneError


class PrefixConfig(MethodConfig):
    """Options of prefix tuning."""

    num_virtual_tokens: int = Field(20, ge=1, description="length P of the prefix")
    prefix_projection: bool = Field(
        False, description="train through the paper's MLP (reparameterisation); it is folded away when saved"
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="width of that MLP; the backbone's hidden size if left out"
    )
    preserve_positions: bool = Field(
        False,
        description="leave the real tokens' positions alone; otherwise they start at P, as in peft and the paper",
    )
    init: Literal["normal", "zero"] = Field(
        "normal",
        validation_alias=AliasChoices("init", "init_weights"),
        description="start of the prefix: N(0, init_std) or zero",
    )
    init_std: float = Field(1.0, gt=0, description="spread of the 'normal' start")

    @model_validator(mode="after")
    def _check(self) -> PrefixConfig:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(
                "encoder_hidden_size is the width of the MLP, and there is none: set prefix_projection=True, or leave "
                "it out"
            )
        return self


class PrefixEncoder(nn.Module):
    """Holds P virtual tokens and gives each layer its keys and values.

    Without projection the embedding is the prefix itself, (P, 2 · layers · heads · head size); with it the prefix is
    `W2 tanh(W1 E + b1) + b2`, section 4.3 of the paper.
    """

    def __init__(self, layers: int, heads: int, head_size: int, hidden: int, config: PrefixConfig) -> None:
        super().__init__()
        self.shape = (config.num_virtual_tokens, layers, 2, heads, head_size)
        width = 2 * layers * heads * head_size
        self.embedding = nn.Embedding(config.num_virtual_tokens, hidden if config.prefix_projection else width)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.transform = None
        if config.prefix_projection:
            middle = config.encoder_hidden_size or hidden
            self.transform = nn.Sequential(nn.Linear(hidden, middle), nn.Tanh(), nn.Linear(middle, width))
        if config.init == "zero":
            last: Any = self.transform[-1] if self.transform is not None else self.embedding
            nn.init.zeros_(last.weight)
            if self.transform is not None:
                nn.init.zeros_(last.bias)

    def prefix(self) -> torch.Tensor:
        """Return the whole prefix, (P, 2 · layers · heads · head size), as peft stores it."""
        weight = self.embedding.weight
        return weight if self.transform is None else self.transform(weight)

    def layer(self, index: int) -> torch.Tensor:
        """Return one layer's keys and values, (2, heads, P, head size).

        Each layer asks for its own slice, so nothing is carried from one forward to another: gradient
        checkpointing and partial backward need no care.
        """
        tokens, layers, _, heads, size = self.shape
        if self.transform is None:
            part = self.embedding.weight.view(tokens, layers, -1)[:, index]
        else:
            out: Any = self.transform[2]
            rows = slice(index * 2 * heads * size, (index + 1) * 2 * heads * size)
            hidden = self.transform[1](self.transform[0](self.embedding.weight))
            part = nn.functional.linear(hidden, out.weight[rows], out.bias[rows])
        return part.view(tokens, 2, heads, size).permute(1, 2, 0, 3)


@register_method("prefix")
class Prefix(Method):
    """Prefix tuning: P trained key/value pairs in front of every layer's, Li & Liang 2021, arXiv:2101.00190.

    Nothing passes through the cache or the attention mask of the model, so `generate`, gradient checkpointing
    and models without a cache (DistilBERT, ModernBERT) work. File and arithmetic are peft's, but for this: every
    token attends to the prefix, in sliding-window layers too, where peft's prefix slides out of sight with the tokens.
    ALBERT's layers share their weights and so they share one prefix.

    DeBERTa, T5 and BART are refused: see `Anatomy.no_prefix`.
    """

    summary = "trained keys and values that every layer attends to"
    paper = "Li & Liang 2021, arXiv:2101.00190"
    Config = PrefixConfig
    peft_type = "PREFIX_TUNING"
    marker = "prefix_encoder"
    key_prefix = "base_model."

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: PrefixConfig) -> None:
        """Add the encoder to the base model; let each layer's attention find it through its config."""
        attentions = [model.get_submodule(path) for path in _attentions(backbone)]
        positions = model.get_submodule(str(backbone.positions()))
        base = model.get_submodule(backbone.base)
        rows = position_rows(positions)
        if rows is not None and not config.preserve_positions and config.num_virtual_tokens >= rows:
            raise BackboneError(
                f"num_virtual_tokens: {config.num_virtual_tokens} fill all of the backbone's {rows} positions. "
                f"Take fewer, or preserve_positions=True."
            )
        if not hasattr(base, "prefix_encoder"):
            for attention in attentions:
                own_attention(attention, attention.config)
            base.prefix_encoder = nn.ModuleDict()
            state = PrefixState(base.prefix_encoder)
            for index, attention in enumerate(attentions):
                PrefixSite.open(attention, state, index)
            positions.register_forward_pre_hook(PositionShift(state), with_kwargs=True)
        site: Any = attentions[0].prefix_site
        site.state.shifts[name] = 0 if config.preserve_positions else config.num_virtual_tokens
        heads, size = head_geometry(model.config)
        encoder = PrefixEncoder(len(attentions), heads, size, hidden_size(model.config), config)
        encoders: Any = base.prefix_encoder
        encoders[name] = encoder.to(next(base.parameters()).device)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the encoder; with the last one the attention modules get their config back."""
        for base in [module for module in model.modules() if "prefix_encoder" in module._modules]:
            encoders: Any = base.prefix_encoder
            if name in encoders:
                del encoders[name]
            if len(encoders):
                continue
            del base.prefix_encoder
            for module in model.modules():
                site: Any = module.__dict__.pop("prefix_site", None)
                if site is not None:
                    setattr(module, "config", site.config)  # noqa: B010 (mypy takes a module's attributes for modules)
                for key in [k for k, h in module._forward_pre_hooks.items() if isinstance(h, PositionShift)]:
                    del module._forward_pre_hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Switch prefixes; several stand one behind the other. Without any, attention is the model's own."""
        for module in model.modules():
            site: Any = module.__dict__.get("prefix_site")
            if site is not None:
                site.state.active = list(names)
                config = site.view if names else site.config
                setattr(module, "config", config)  # noqa: B010 (mypy takes a module's attributes for modules)

    def state(self, model: nn.Module, name: str, config: PrefixConfig) -> dict[str, torch.Tensor]:
        """Return the prefix as peft does: one flat tensor, the projection folded in."""
        with torch.no_grad():
            return {"prompt_embeddings": self._encoder(model, name).prefix().detach().clone()}

    def load_state(self, model: nn.Module, name: str, config: PrefixConfig, state: dict[str, torch.Tensor]) -> None:
        """Copy a flat prefix into an encoder without projection."""
        with torch.no_grad():
            self._encoder(model, name).embedding.weight.copy_(state["prompt_embeddings"])

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: PrefixConfig) -> dict[str, Any]:
        """Return peft's fields; the file holds the plain prefix, so it says so."""
        heads, size = head_geometry(model.config)
        fields = peft.PrefixTuningConfig(
            num_virtual_tokens=config.num_virtual_tokens,
            num_layers=len(backbone.layers),
            num_attention_heads=heads,
            token_dim=heads * size,
            num_transformer_submodules=1,
            encoder_hidden_size=config.encoder_hidden_size or hidden_size(model.config),
            prefix_projection=False,
        )
        ours = {"preserve_positions": True} if config.preserve_positions else {}
        return fields.to_dict() | ours

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields."""
        return {
            "num_virtual_tokens": fields["num_virtual_tokens"],
            "prefix_projection": False,
            "encoder_hidden_size": None,
            "preserve_positions": fields.get("preserve_positions", False),
        }

    def _encoder(self, model: nn.Module, name: str) -> PrefixEncoder:
        encoders: Any = next(m.prefix_encoder for m in model.modules() if "prefix_encoder" in m._modules)
        return encoders[name]


def _attentions(backbone: Backbone) -> list[str]:
    """Return the paths of the modules that attend.

    Raises:
        BackboneError: we don't know them, or no prefix can be put in front of them.
    """
    anatomy = backbone.anatomy()
    if anatomy.attention is None:
        raise BackboneError(
            f"prefix tuning doesn't work on architecture '{backbone.model_type}': {anatomy.no_prefix}. "
            "Use 'lora', 'adalora' or 'bottleneck'."
        )
    return [backbone.at(layer, "attention") for layer in range(len(backbone.layers))]
