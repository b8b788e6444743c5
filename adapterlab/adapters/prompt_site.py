"""Where in a model virtual tokens stand, and the hooks that are put there."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from adapterlab.adapters.virtual_tokens import Cut, LengthenCross, Prepend, PromptState
from adapterlab.backbones import Backbone, join
from adapterlab.errors import BackboneError

HOOKS = (Prepend, Cut, LengthenCross)
POOLED_HEADS = ("ForSequenceClassification", "ForMultipleChoice")


class Site(NamedTuple):
    """Where the virtual tokens stand: the module that is given them, and the decoder that reads its output."""

    path: str
    decoder: str | None = None
    cut: bool = True  # whether the module's output leaves without them


def install(model: nn.Module, backbone: Backbone, site: Site, length: int) -> PromptState:
    """Return the state of the model's prompts; put the hooks in place if there are none yet.

    Raises:
        BackboneError: the module takes no embeddings, or has no room for `length` virtual tokens.
    """
    module: Any = model.get_submodule(site.path)
    names = _positional(module)
    if "inputs_embeds" not in names or not hasattr(module, "get_input_embeddings"):
        lacks = "takes no 'inputs_embeds' in forward" if "inputs_embeds" not in names else "has no get_input_embeddings"
        raise BackboneError(
            f"virtual tokens are embeddings, and {type(module).__name__} can't be given them: it {lacks}. "
            "Use 'lora' for this backbone."
        )
    if getattr(module, "_is_stateful", False):  # transformers' word for Mamba and its like
        raise BackboneError(
            f"{type(module).__name__} keeps what it has read in a state of fixed size, which doesn't tell whether the "
            "virtual tokens are in it. Use 'lora' for this backbone."
        )
    rows, first = _positions(module)
    if rows is not None and length >= rows:
        raise BackboneError(f"num_virtual_tokens: {length} fill all of the backbone's {rows} positions. Take fewer.")
    state = state_of(model)
    if state is None:
        module.virtual_tokens = nn.ModuleDict()
        state = PromptState(module.virtual_tokens)
        module.register_forward_pre_hook(Prepend(state, names, rows, first), with_kwargs=True)
        if site.cut:
            module.register_forward_hook(Cut(state), with_kwargs=True)
        if site.decoder is not None:
            decoder = model.get_submodule(site.decoder)
            decoder.register_forward_pre_hook(LengthenCross(state, _positional(decoder)), with_kwargs=True)
    return state


def uninstall(model: nn.Module) -> None:
    """Take hooks and prompts out again."""
    for module in model.modules():
        module._modules.pop("virtual_tokens", None)
        for hooks, with_kwargs in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if isinstance(hook, HOOKS)]:
                del hooks[key]
                with_kwargs.pop(key, None)


def state_of(model: nn.Module) -> PromptState | None:
    """Return the state of the model's prompts, if it has any."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return next((hook.state for hook in hooks if isinstance(hook, Prepend)), None)


def find_site(model: nn.Module, backbone: Backbone) -> Site:
    """Return where virtual tokens go: the base model, or what it is wrapped around; the encoder, of an encoder-decoder.

    A head that pools an encoder's output (its first position, or the mean) is to pool with the virtual tokens, as
    peft has it: there it is the model as a whole.

    Raises:
        BackboneError: the head can't be told from the base model.
    """
    config: Any = model.config
    base = model.get_submodule(backbone.base)
    if getattr(config, "is_encoder_decoder", False) and {"encoder", "decoder"} <= base._modules.keys():
        return Site(join(backbone.base, "encoder"), decoder=join(backbone.base, "decoder"), cut=False)
    if type(model).__name__.endswith(POOLED_HEADS) and "inputs_embeds" in _positional(model) and not _causal(model):
        return Site("")
    if not backbone.base and isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        raise BackboneError(
            f"{type(model).__name__} doesn't say which of its modules is the model without the language-model head "
            "(base_model_prefix): the virtual tokens can't be cut out before it. Use 'lora' for this backbone."
        )
    return Site(_innermost(model, backbone.base))


def _innermost(model: Any, path: str) -> str:
    """Go from a wrapper to what it wraps: OPT's heads call the decoder in the base model, not the base model."""
    words = model.get_input_embeddings()
    for name, child in model.get_submodule(path).named_children():
        takes = isinstance(child, PreTrainedModel) and {"input_ids", "inputs_embeds"} <= set(_positional(child))
        if takes and any(module is words for module in child.modules()):
            return _innermost(model, join(path, name))
    return path


def _positional(module: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(type(module).forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]


def _positions(module: nn.Module) -> tuple[int | None, int]:
    """Return how many positions the module's table has, if it has one, and which is the first."""
    for path, table in module.named_modules():
        name = path.rsplit(".", 1)[-1]
        if isinstance(table, nn.Embedding) and ("position" in name or name == "wpe") and "relative" not in name:
            offset = getattr(table, "offset", None)  # OPT and BART add it themselves
            first = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - (first if offset is None else offset), 0 if offset is not None else first
    return None, 0


def _causal(model: nn.Module) -> bool:
    """Whether tokens see only what is before them, so that a head reads the last one."""
    config: Any = model.config
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or any(
        getattr(module, "is_causal", False) for module in model.modules()
    )
