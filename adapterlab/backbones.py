"""Read a model: where its layers, attention, FFN, positions and heads are.

`describe(model)` gives a `Backbone` of dotted paths. An architecture that `anatomies.py` doesn't know is read by
shape: its layers are the outermost lists of equal blocks, its linears whatever linear modules they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapterlab.anatomies import KNOWN, Anatomy, anatomies
from adapterlab.errors import BackboneError

LINEAR = (nn.Linear, Conv1D)
# Classes whose head is a pretrained language-model head, in one module or several: it isn't the task's.
LANGUAGE_MODELS = ("MaskedLM", "CausalLM", "LMHeadModel", "ForConditionalGeneration")


class Found(NamedTuple):
    """A module and its dotted path from the model."""

    path: str
    module: nn.Module


@dataclass(frozen=True)
class Backbone:
    """One model, described. Paths are dotted, from the model that `describe` was given.

    An encoder-decoder's layers are the encoder's and then the decoder's. Where layers share their weights (ALBERT),
    `layers` are those that there are, not how often they run.
    """

    model_type: str
    base: str  # path of the model without its head; "" when there is no head
    layers: tuple[str, ...]
    heads: tuple[str, ...]  # modules that belong to the task, trained and saved with an adapter
    anatomies: tuple[Anatomy, ...]  # of each layer; empty: read by shape, only layers and linears are known

    def linears(self, model: nn.Module, layers: list[int] | None = None) -> Iterator[Found]:
        """Yield the linear modules inside the layers (all, or those with the given indices)."""
        for index, layer in enumerate(self.layers):
            if layers is None or index in layers:
                for name, module in model.get_submodule(layer).named_modules():
                    if isinstance(module, LINEAR):
                        yield Found(join(layer, name), module)

    def anatomy(self, layer: int = 0) -> Anatomy:
        """Return a layer's anatomy.

        Raises:
            BackboneError: the architecture isn't one we know the inside of.
        """
        if not self.anatomies:
            unknown = (
                "is built otherwise here than in transformers"
                if self.model_type in KNOWN
                else f"is not among those described: {', '.join(sorted(KNOWN))}"
            )
            raise BackboneError(
                "this method must know where attention and FFN meet their residuals, and architecture "
                f"'{self.model_type}' {unknown}. "
                "Use 'lora' or 'adalora', which need only the linear layers, or 'bottleneck' with variant 'pfeiffer', "
                "which stands behind whole layers."
            )
        return self.anatomies[layer]

    def at(self, layer: int, part: str) -> str:
        """Return the path of one part of a layer's anatomy, e.g. `at(0, "ffn_out")`."""
        return f"{self.layers[layer]}.{getattr(self.anatomy(layer), part)}"

    def positions(self) -> str | None:
        """Return the path of the module that reads position ids, if there is one that we know."""
        name = self.anatomies[0].positions if self.anatomies else None
        return None if name is None else join(self.base, name)

    def pick_layers(self, wanted: list[int] | None, leave_out: list[int] | None = None) -> list[int]:
        """Return the layer indices to use: `wanted` (all, if None) without `leave_out`. Negatives count from the top.

        Raises:
            BackboneError: a layer doesn't exist, or none is left.
        """
        count = len(self.layers)
        for option, indices in (("layers", wanted), ("leave_out: layers", leave_out)):
            outside = [index for index in indices or [] if not -count <= index < count]
            if outside:
                sides = list(dict.fromkeys(anatomy.layers.split(".")[0] for anatomy in self.anatomies))
                order = f", {sides[0]}'s before {sides[1]}'s" if len(sides) > 1 else ""
                raise BackboneError(
                    f"{option} {outside} do not exist: this {self.model_type} has {count} layers, 0 to {count - 1} "
                    f"(or -1 to -{count}, from the top){order}."
                )
        left_out = {index % count for index in leave_out or []}
        picked = sorted({index % count for index in (range(count) if wanted is None else wanted)} - left_out)
        if not picked:
            raise BackboneError(f"leave_out: {leave_out} leaves no layer to adapt; leave out fewer.")
        return picked


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
    stacks = [
        (layer, anatomy)
        for anatomy in anatomies(model_type, model.config)
        for layer in _children(model, join(base, anatomy.layers))
    ]
    layers = [layer for layer, _ in stacks]
    # a class of somebody else's, or of another transformers, may go by the same model_type
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    if not stacks or not all(_parts(base, layer, anatomy) <= paths for layer, anatomy in stacks):
        layers, stacks = [layer for path in _layer_lists(model) for layer in _children(model, path)], []
    heads = tuple(_heads(model, base, layers))
    return Backbone(model_type, base, tuple(layers), heads, tuple(anatomy for _, anatomy in stacks))


def join(*parts: str) -> str:
    """Join dotted paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Have a model in eval mode inside the `with` block, and each of its modules in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def head_geometry(config: Any) -> tuple[int, int]:
    """Return (key/value heads, size of a head) from a transformers config."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = int(text.num_attention_heads)
    size = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    return int(getattr(text, "num_key_value_heads", None) or heads), int(size)


def hidden_size(config: Any) -> int:
    """Return the width of the hidden states from a transformers config.

    Raises:
        BackboneError: it doesn't say.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "hidden_size", None)
    if not isinstance(size, int):
        raise BackboneError(
            f"{type(config).__name__} has no hidden_size, so the width of this model's layers isn't known. Give its "
            "config class an attribute_map, as transformers' configs have: {'hidden_size': 'your_name_for_it'}."
        )
    return size


def _heads(model: PreTrainedModel, base: str, layers: list[str]) -> Iterator[str]:
    """Top-level modules beside the base model that have weights, but not the pretrained language-model head."""
    if type(model).__name__.endswith(LANGUAGE_MODELS):
        return
    if not base and "QuestionAnswering" not in type(model).__name__:
        return  # a bare model; only T5 for question answering has its stacks and its head side by side
    frozen = [model.get_input_embeddings(), model.get_output_embeddings()]
    beside = list(model.named_children())
    for name, module in beside:
        is_base = name == base.split(".")[0] or any(layer.startswith(name + ".") for layer in layers)
        is_embedding = any(part is given for part in module.modules() for given in frozen)
        if not is_base and is_embedding and not any(part is given for part in module.children() for given in frozen):
            beside += [(join(name, child), part) for child, part in module.named_children()]  # BERT's `cls` of two
        elif not is_base and not is_embedding and any(True for _ in module.parameters()):
            yield name


def _children(model: nn.Module, pattern: str) -> list[str]:
    """Paths of the children of the module at `pattern`, where `*` is any child; none where there is no such module."""
    paths = [""]
    for part in [*pattern.split("."), "*"]:
        owners = {path: model.get_submodule(path) for path in paths}
        paths = [join(path, n) for path, owner in owners.items() for n, _ in owner.named_children() if part in (n, "*")]
    return paths


def _parts(base: str, layer: str, anatomy: Anatomy) -> set[str]:
    """Paths of all modules that an anatomy names."""
    own = {getattr(anatomy, field.name) for field in fields(Anatomy) if field.name.startswith(("attention", "ffn"))}
    positions = {join(base, anatomy.positions)} if anatomy.positions else set()
    return positions | {join(layer, name) for name in own - {None}}


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
