"""What we know of each architecture: where its layers, attention, FFN, positions and heads are.

`describe(model)` gives a `Backbone` of dotted paths. An architecture without an entry in `_KNOWN` is read by
shape: its layers are the outermost lists of equal blocks, its linears whatever linear modules they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterlab.errors import BackboneError

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class Anatomy:
    """Names inside one layer, relative to it. `None`: this architecture has no such module.

    A sublayer's output before the residual sum is s, its residual r. In post-norm layers (BERT) the norm reads
    s + r; in pre-norm layers (GPT-2, Llama) the norm reads r.
    """

    layers: str  # the list of layers, relative to the base model
    attention: str  # the module that computes attention (it calls transformers' attention interface)
    attention_out: str  # its output is s of the attention sublayer
    attention_norm: str
    ffn_in: str  # its input is what the FFN reads
    ffn_out: str  # its output is s of the FFN sublayer
    ffn_norm: str
    post_norm: bool
    positions: str  # the module that turns position ids into embeddings or rotations


_BERT = Anatomy(
    layers="encoder.layer",
    attention="attention.self",
    attention_out="attention.output.dropout",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate",
    ffn_out="output.dropout",
    ffn_norm="output.LayerNorm",
    post_norm=True,
    positions="embeddings.position_embeddings",
)
_LLAMA = Anatomy(
    layers="layers",
    attention="self_attn",
    attention_out="self_attn",
    attention_norm="input_layernorm",
    ffn_in="mlp",
    ffn_out="mlp",
    ffn_norm="post_attention_layernorm",
    post_norm=False,
    positions="rotary_emb",
)
_KNOWN: dict[str, Anatomy] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Anatomy(
        layers="transformer.layer",
        attention="attention",
        attention_out="attention",
        attention_norm="sa_layer_norm",
        ffn_in="ffn",
        ffn_out="ffn",
        ffn_norm="output_layer_norm",
        post_norm=True,
        positions="embeddings.position_embeddings",
    ),
    "gpt2": Anatomy(
        layers="h",
        attention="attn",
        attention_out="attn",
        attention_norm="ln_1",
        ffn_in="mlp",
        ffn_out="mlp",
        ffn_norm="ln_2",
        post_norm=False,
        positions="wpe",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


class Found(NamedTuple):
    """A module and its dotted path from the model."""

    path: str
    module: nn.Module


@dataclass(frozen=True)
class Backbone:
    """One model, described. Paths are dotted, from the model that `describe` was given."""

    model_type: str
    base: str  # path of the model without its head; "" when there is no head
    layers: tuple[str, ...]
    heads: tuple[str, ...]  # modules that belong to the task, trained and saved with an adapter
    anatomy: Anatomy | None  # None: read by shape, only layers and linears are known

    def linears(self, model: nn.Module, layers: list[int] | None = None) -> Iterator[Found]:
        """Yield the linear modules inside the layers (all, or those with the given indices)."""
        for index, layer in enumerate(self.layers):
            if layers is None or index in layers:
                for name, module in model.get_submodule(layer).named_modules():
                    if isinstance(module, LINEAR):
                        yield Found(join(layer, name), module)

    def at(self, layer: int, part: str) -> str:
        """Return the path of one part of a layer's anatomy, e.g. `at(0, "ffn_norm")`."""
        return f"{self.layers[layer]}.{getattr(self.known(), part)}"

    def positions(self) -> str:
        """Return the path of the module that reads position ids."""
        return join(self.base, self.known().positions)

    def known(self) -> Anatomy:
        """Return the anatomy.

        Raises:
            BackboneError: the architecture isn't one we know the inside of.
        """
        if self.anatomy is None:
            raise BackboneError(
                f"this method must know where attention and FFN meet their residuals, and architecture "
                f"'{self.model_type}' is not among those described: {', '.join(sorted(_KNOWN))}. "
                "Use 'lora' or 'adalora', which need only the linear layers."
            )
        return self.anatomy

    def pick_layers(self, wanted: list[int] | None) -> list[int]:
        """Return the layer indices to use; negative ones count from the top.

        Raises:
            BackboneError: a layer doesn't exist.
        """
        count = len(self.layers)
        if wanted is None:
            return list(range(count))
        outside = [index for index in wanted if not -count <= index < count]
        if outside:
            raise BackboneError(
                f"layers {outside} do not exist: this {self.model_type} has {count} layers, 0 to {count - 1} "
                f"(or -1 to -{count}, from the top)."
            )
        return sorted({index % count for index in wanted})


def describe(model: nn.Module) -> Backbone:
    """Find layers and heads of a transformers model.

    Raises:
        BackboneError: this isn't a transformers model, or no list of equal layers is in it.
    """
    if not isinstance(model, PreTrainedModel):
        given = f"{type(model).__module__}.{type(model).__name__}"
        hint = " Pass the model inside: model.get_base_model()." if hasattr(model, "get_base_model") else ""
        raise BackboneError(f"a transformers model is needed, and this is {given}.{hint}")
    model_type = str(getattr(model.config, "model_type", type(model).__name__))
    base = next((name for name, module in model.named_modules() if module is model.base_model), "")
    anatomy = _KNOWN.get(model_type)
    lists = [join(base, anatomy.layers)] if anatomy else _layer_lists(model)
    layers = [join(path, name) for path in lists for name, _ in model.get_submodule(path).named_children()]
    return Backbone(model_type, base, tuple(layers), tuple(_heads(model, base)), anatomy)


def join(*parts: str) -> str:
    """Join dotted paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)


def head_geometry(config: Any) -> tuple[int, int]:
    """Return (key/value heads, size of a head) from a transformers config."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = int(text.num_attention_heads)
    size = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    return int(getattr(text, "num_key_value_heads", None) or heads), int(size)


def _heads(model: PreTrainedModel, base: str) -> Iterator[str]:
    """Top-level modules beside the base model that have weights, but not the pretrained language-model head."""
    if not base:
        return
    output = model.get_output_embeddings()
    for name, module in model.named_children():
        is_language_head = output is not None and any(part is output for part in module.modules())
        if name != base.split(".")[0] and not is_language_head and any(True for _ in module.parameters()):
            yield name


def _layer_lists(model: nn.Module) -> list[str]:
    """Paths of the outermost lists of equal blocks that hold linears: one, or encoder's and decoder's."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(outer + ".") for outer in found):
            continue
        alike = len(module) > 0 and len({type(block) for block in module}) == 1
        if alike and not isinstance(module[0], LINEAR) and any(isinstance(m, LINEAR) for m in module[0].modules()):
            found.append(name)
    if not found:
        raise BackboneError(
            f"no list of equal layers with linear modules was found in {type(model).__name__}; "
            "adapterlab attaches to transformer encoders and decoders."
        )
    return found
