"""What AdapterHub calls the places of its adapters, by architecture. Modules have the same paths on both sides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from adapterlab.anatomies import KNOWN, Anatomy
from adapterlab.backbones import Backbone, join
from adapterlab.errors import AdapterFolderError, did_you_mean


class Names(NamedTuple):
    """Module names relative to a layer, but for `prefix`."""

    attention: str | None  # holds the bottleneck at attention; None: it is computed otherwise there
    ffn: str  # holds the bottleneck at the FFN
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    intermediate: str  # what `intermediate_lora` adapts
    output: str  # what `output_lora` adapts
    prefix: str = "self_prefix"  # the prefix's name in the pool
    merged: bool = False  # query, key and value are one linear


class Stack(NamedTuple):
    """One list of layers of an architecture: how it is built, and AdapterHub's names for it."""

    anatomy: Anatomy
    names: Names


@dataclass(frozen=True)
class Layer:
    """One layer."""

    index: int  # in its stack
    path: str  # relative to the base model
    stack: Stack


_BERT = Names(
    attention="attention.output",
    ffn="output",
    query=("attention.self.query",),
    key=("attention.self.key",),
    value=("attention.self.value",),
    intermediate="intermediate.dense",
    output="output.dense",
)
_DEBERTA = _BERT._replace(
    query=("attention.self.query_proj",), key=("attention.self.key_proj",), value=("attention.self.value_proj",)
)
_DISTILBERT = Names(
    attention="attention_adapters",
    ffn="output_adapters",
    query=("attention.q_lin",),
    key=("attention.k_lin",),
    value=("attention.v_lin",),
    intermediate="ffn.lin1",
    output="ffn.lin2",
    prefix="self",
)
_ALBERT = Names(
    attention=None,
    ffn="output_adapters",
    query=("attention.query",),
    key=("attention.key",),
    value=("attention.value",),
    intermediate="ffn",
    output="ffn_output",
)
_GPT2 = Names(
    attention="attention_adapters",
    ffn="output_adapters",
    query=("attn.c_attn",),
    key=("attn.c_attn",),
    value=("attn.c_attn",),
    intermediate="mlp.c_fc",
    output="mlp.c_proj",
    merged=True,
)
_LLAMA = Names(
    attention="attention_adapters",
    ffn="output_adapters",
    query=("self_attn.q_proj",),
    key=("self_attn.k_proj",),
    value=("self_attn.v_proj",),
    intermediate="mlp.down_proj",  # so it is: the two are the other way round in the library
    output="mlp.up_proj",
)
_BART_ENCODER = _LLAMA._replace(intermediate="fc1", output="fc2")
_BART_DECODER = _BART_ENCODER._replace(
    query=("self_attn.q_proj", "encoder_attn.q_proj"),
    key=("self_attn.k_proj", "encoder_attn.k_proj"),
    value=("self_attn.v_proj", "encoder_attn.v_proj"),
)
# The base model's name in a model with a head, and the names in each of its stacks.
_ARCHITECTURES: dict[str, tuple[str, tuple[Names, ...]]] = {
    "albert": ("albert", (_ALBERT,)),
    "bart": ("model", (_BART_ENCODER, _BART_DECODER)),
    "bert": ("bert", (_BERT,)),
    "deberta-v2": ("deberta", (_DEBERTA,)),
    "distilbert": ("distilbert", (_DISTILBERT,)),
    "electra": ("electra", (_BERT,)),
    "gpt2": ("transformer", (_GPT2,)),
    "llama": ("model", (_LLAMA,)),
    "mistral": ("model", (_LLAMA,)),
    "roberta": ("roberta", (_BERT,)),
    "xlm-roberta": ("roberta", (_BERT,)),
}


class Architecture:
    """One architecture, as both sides name its parts.

    Raises:
        AdapterFolderError: it is none of those whose names are known.
    """

    def __init__(self, model_type: str, source: object) -> None:
        if model_type not in _ARCHITECTURES:
            known = sorted(_ARCHITECTURES)
            raise AdapterFolderError(
                f"the adapter in '{source}' is for model type '{model_type}', whose names in AdapterHub aren't known "
                f"here.{did_you_mean(model_type, known)} Converted are: {', '.join(known)}."
            )
        self.model_type = model_type
        self.base, names = _ARCHITECTURES[model_type]
        self.stacks = [Stack(anatomy, name) for anatomy, name in zip(KNOWN[model_type], names, strict=True)]

    def layers(self, keys: Iterable[str]) -> list[Layer]:
        """Return the layers that tensors stand in, by the tensors' names (relative to the base model)."""
        found: list[Layer] = []
        keys = list(keys)
        for stack in self.stacks:
            pattern = re.compile(stack.anatomy.layers.replace(".", r"\.").replace("*", r"\d+") + r"\.\d+(?=\.)")
            paths = {match.group() for key in keys if (match := pattern.match(key))}
            numbers = {path: [int(part) for part in path.split(".") if part.isdigit()] for path in paths}
            one_list = "*" not in stack.anatomy.layers
            for place, path in enumerate(sorted(paths, key=numbers.__getitem__)):
                found.append(Layer(numbers[path][-1] if one_list else place, path, stack))
        return found

    def backbone(self, layers: list[Layer]) -> Backbone:
        """Return these layers as the methods see them."""
        return Backbone(
            self.model_type, "", tuple(at.path for at in layers), (), tuple(at.stack.anatomy for at in layers)
        )

    def with_base(self, key: str, headed: bool) -> str:
        """Return a path from the model, given one from the base model."""
        return join(self.base, key) if headed else key

    def without_base(self, key: str) -> str:
        """Return a path from the base model, given one from the model or from the base model."""
        return key.removeprefix(self.base + ".")

    def left_out(self, layers: list[Layer], count: int | None) -> list[int]:
        """Return the indices of the layers that have no adapter, of `count`; up to the last that has, if None.

        Raises:
            AdapterFolderError: some have none in an encoder-decoder, where the files don't tell their indices.
        """
        gaps: list[int] = []
        for stack in self.stacks:
            here = [at.index for at in layers if at.stack is stack]
            total = count if count is not None and len(self.stacks) == 1 else max(here, default=-1) + 1
            gaps += sorted(set(range(total)) - set(here))
        if gaps and len(self.stacks) > 1:
            raise AdapterFolderError(
                f"layers are left out of this {self.model_type}, and the files don't tell which of encoder and decoder "
                "together. Adapt all layers."
            )
        return gaps
