"""Prompt tuning: trained embeddings in front of the tokens' (Lester et al. 2021)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import peft
import torch
from pydantic import AliasChoices, BeforeValidator, Field, model_validator
from torch import nn

from adapterlab.adapters.base import Method, MethodConfig, register_method
from adapterlab.adapters.prompt_site import find_site, install, state_of, uninstall
from adapterlab.backbones import Backbone
from adapterlab.errors import BackboneError

PEFT_INITS = {"SAMPLE_VOCAB": "vocabulary", "TEXT": "vocabulary", "RANDOM": "random"}


class PromptConfig(MethodConfig):
    """Options of prompt tuning."""

    num_virtual_tokens: int = Field(20, ge=1, description="length P of the prompt")
    init: Annotated[
        Literal["vocabulary", "random"], BeforeValidator(lambda given: PEFT_INITS.get(str(given), given))
    ] = Field(
        "vocabulary",
        validation_alias=AliasChoices("init", "prompt_tuning_init"),
        description="start of the prompt: embeddings of tokens drawn from the vocabulary, or N(0, 1)",
    )
    init_ids: list[int] | None = Field(
        None, min_length=1, description="token ids whose embeddings start the prompt, repeated or cut to its length"
    )

    @model_validator(mode="after")
    def _one_start(self) -> PromptConfig:
        if self.init_ids is not None and self.init == "random":
            raise ValueError("init='random' and init_ids are two starts of one prompt; give one of them")
        return self


class PromptEmbedding(nn.Module):
    """Holds P virtual tokens: the weight, (P, embedding size), is the prompt itself."""

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, size)

    def forward(self) -> torch.Tensor:
        """Return the prompt, (P, embedding size)."""
        return self.embedding.weight


class PromptMethod(Method):
    """What prompt tuning and P-tuning share: all but the module that makes the prompt."""

    marker = "virtual_tokens"
    key_prefix = "base_model."
    rewires_layers = False

    @abstractmethod
    def encoder(self, config: Any, words: Any) -> PromptEmbedding:
        """Return the module that makes the prompt; `words` is the backbone's embedding of tokens."""

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> None:
        """Add the prompt in front of the base model's tokens."""
        site = find_site(model, backbone)
        for path in (site.path, site.decoder or ""):
            _keep_out(path, config.modules_to_save, self.name)
        state = install(model, backbone, site, config.num_virtual_tokens)
        module: Any = model.get_submodule(site.path)
        words = module.get_input_embeddings()
        state.encoders[name] = self.encoder(config, words).to(words.weight.device, torch.float32)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the prompt; the hooks go with the last one."""
        state = state_of(model)
        if state is None:
            return
        if name in state.encoders:
            del state.encoders[name]
        state.active = {method: [n for n in names if n != name] for method, names in state.active.items()}
        if not len(state.encoders):
            uninstall(model)

    def activate(self, model: nn.Module, names: list[str]) -> None:
        """Switch prompts; several stand one behind the other."""
        state = state_of(model)
        if state is not None:
            state.active[self.name] = list(names)

    def state(self, model: nn.Module, name: str, config: Any) -> dict[str, torch.Tensor]:
        """Return the prompt as peft does: one tensor, whatever makes it folded in."""
        encoder = _encoder(model, name)
        training = encoder.training
        encoder.eval()
        with torch.no_grad():
            prompt = encoder().clone()
        encoder.train(training)
        return {"prompt_embeddings": torch.cat([prompt, *encoder.buffers()])}

    def load_state(self, model: nn.Module, name: str, config: Any, state: dict[str, torch.Tensor]) -> None:
        """Copy a prompt."""
        encoder = _encoder(model, name)
        with torch.no_grad():
            own, spare = state["prompt_embeddings"].split([config.num_virtual_tokens, _spare(encoder)])
            encoder.embedding.weight.copy_(own)
            for buffer in encoder.buffers():
                buffer.copy_(spare)

    def adopt(self, model: nn.Module, name: str, fields: dict[str, Any]) -> None:
        """Make room for the second prompt that peft stores for an encoder-decoder, though it never reads it."""
        if fields.get("num_transformer_submodules") == 2:
            encoder = _encoder(model, name)
            encoder.register_buffer("spare", torch.zeros_like(encoder.embedding.weight))

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: Any) -> dict[str, Any]:
        """Return peft's fields."""
        encoder = _encoder(model, name)
        text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        return {
            "num_virtual_tokens": config.num_virtual_tokens,
            "token_dim": encoder.embedding.embedding_dim,
            "num_transformer_submodules": 2 if _spare(encoder) else 1,
            "num_attention_heads": getattr(text, "num_attention_heads", 1),
            "num_layers": len(backbone.layers),
        }


@register_method("prompt", aliases=("prompt_tuning",))
class Prompt(PromptMethod):
    """Prompt tuning: P trained embeddings in front of the tokens', Lester et al. 2021, arXiv:2104.08691.

    The backbone reads [P_e; X_e], section 2 of the paper; heads and losses of single tokens see X only. File and
    arithmetic are peft's: a head that pools an encoder's output pools with the prompt in front, so one that reads
    the first position reads the first virtual token. Padding on the left stands between prompt and tokens; where
    attention has a sliding window, it takes up room in it.
    """

    summary = "trained embeddings in front of the tokens'"
    paper = "Lester et al. 2021, arXiv:2104.08691"
    Config = PromptConfig
    peft_type = "PROMPT_TUNING"

    def encoder(self, config: PromptConfig, words: Any) -> PromptEmbedding:
        """Return P embeddings, started as the options say."""
        rows, size = words.weight.shape
        encoder = PromptEmbedding(config.num_virtual_tokens, size)
        if config.init == "random":
            return encoder
        ids = config.init_ids or torch.randint(rows, (config.num_virtual_tokens,)).tolist()
        outside = [index for index in ids if not 0 <= index < rows]
        if outside:
            raise BackboneError(f"init_ids: {outside} are no tokens: the vocabulary has {rows}, 0 to {rows - 1}.")
        repeated = [ids[place % len(ids)] for place in range(config.num_virtual_tokens)]
        with torch.no_grad():
            start = words(torch.tensor(repeated, device=words.weight.device))
        encoder.embedding.weight = nn.Parameter(start.detach().clone())
        return encoder

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: PromptConfig) -> dict[str, Any]:
        """Return peft's fields."""
        start = "RANDOM" if config.init == "random" else "SAMPLE_VOCAB"
        fields = super().to_peft(model, backbone, name, config)
        return peft.PromptTuningConfig(prompt_tuning_init=start, **fields).to_dict()

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields."""
        start = PEFT_INITS.get(str(fields.get("prompt_tuning_init")), "random")
        return {"num_virtual_tokens": fields["num_virtual_tokens"], "init": start}


def _encoder(model: nn.Module, name: str) -> Any:
    state: Any = state_of(model)
    return state.encoders[name]


def _spare(encoder: nn.Module) -> int:
    return sum(len(buffer) for buffer in encoder.buffers())


def _keep_out(site: str, endings: list[str], method: str) -> None:
    """Refuse to train in full, that is to swap for a copy, a module that carries hooks, or one around it."""
    parts = site.split(".") if site else []
    for ending in endings:
        for path in (".".join(parts[: count + 1]) for count in range(len(parts))):
            if f".{path}".endswith(f".{ending}"):
                raise BackboneError(
                    f"modules_to_save: '{path}' can't be trained in full, since {method} hooks "
                    f"into '{site}'. Leave it out, or name modules inside it."
                )
