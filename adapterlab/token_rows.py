"""New tokens that an adapter brings along, seen from the model: their embeddings are its parameters.

Nothing is resized, and the backbone's embeddings stay as they are. The rows live at `model.new_tokens.NAME`; hooks
put them in where the embedding is looked up, and append the new tokens' logits to those of the output layer. If its
weight is tied, they are the same rows, else there is a second set. Where it has a bias, the new tokens' is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from adapterlab.backbones import LINEAR, Found
from adapterlab.errors import BackboneError, ConfigError

CHILD = "new_tokens"  # of the model


class NewTokens(dict[str, list[int]]):
    """For each new token the ids of the pieces that it was read as, so far. Token k has id `first + k`.

    `first` is the size of the backbone's vocabulary, or less: many have more rows than the tokenizer has tokens.
    """

    def __init__(self, tokens: Mapping[str, Sequence[int]], first: int, special: bool = False) -> None:
        super().__init__({token: list(ids) for token, ids in tokens.items()})
        self.first = first
        self.special = special

    @property
    def end(self) -> int:
        """The id behind the last one."""
        return self.first + len(self)

    @property
    def ids(self) -> dict[str, int]:
        """Ids by token."""
        return {token: self.first + index for index, token in enumerate(self)}


class Rows(nn.Module):
    """The embeddings of one adapter's new tokens, in fp32."""

    def __init__(self, tokens: NewTokens, weight: torch.Tensor, output: torch.Tensor | None) -> None:
        super().__init__()
        self.tokens = tokens
        self.input = _means(weight, tokens)
        self.output = None if output is None else _means(output, tokens)  # None: tied to the input's


class AllRows(nn.ModuleDict):
    """The rows of all of a model's adapters that bring tokens."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size  # what the config says without new tokens
        self.active: str | None = None


def add(model: nn.Module, name: str, new_tokens: Mapping[str, Sequence[int]]) -> None:
    """Give an adapter its rows, each the mean of its pieces'.

    Raises:
        ConfigError: pieces that there are not, or ids that leave a gap.
        BackboneError: the model has no embeddings that can be added to.
    """
    embedding, output = embedding_of(model), output_of(model)
    size = len(embedding.weight)
    tokens = _read(new_tokens, size)
    if output is not None and not (isinstance(base_of(output), LINEAR) and len(output.weight) == size):
        raise BackboneError(
            f"new_tokens: the output layer of this {type(model).__name__} isn't a linear with an output for each "
            "token, so there is nowhere to append the new tokens' logits."
        )
    tied = output is None or output.weight is embedding.weight
    if all_rows(model) is None:
        model.add_module(CHILD, AllRows(_text_config(model).vocab_size))
    rows = Rows(tokens, embedding.weight, None if tied else output.weight)
    all_rows(model)[name] = rows  # type: ignore[index]


def remove(model: nn.Module, name: str) -> None:
    """Take an adapter's rows out; `place` is called next."""
    rows = all_rows(model)
    if rows is not None and name in rows:
        del rows[name]


def place(model: nn.Module, name: str | None) -> None:
    """Let an adapter's new tokens take part in forward, or none."""
    rows = all_rows(model)
    if rows is None:
        return
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (_HideIds, _PutInRows, _AddLogits))]:
                del hooks[key]
    rows.active = name
    size, vocab_size = len(embedding_of(model).weight), rows.vocab_size
    if name is not None:
        own: Any = rows[name]
        for _, end in lookups(model):
            end.register_forward_pre_hook(_HideIds(own.tokens))
            end.register_forward_hook(_PutInRows(own, float(getattr(base_of(end), "embed_scale", 1.0))))
        if (output := output_of(model)) is not None:
            output.register_forward_hook(_AddLogits(own))
        size, vocab_size = max(size, own.tokens.end), max(vocab_size, own.tokens.end)
    _set_vocabulary(model, size, vocab_size)
    if not rows:
        del model._modules[CHILD]


def check_apart(model: nn.Module, in_full: Sequence[str]) -> None:
    """Refuse new tokens beside embeddings that an adapter trains in full.

    Raises:
        BackboneError: such embeddings are swapped when adapters are switched.
    """
    if all_rows(model) is None:
        return
    ends = [end for end in (embedding_of(model), output_of(model)) if end is not None]
    for path in in_full:
        if any(part is end for part in model.get_submodule(path).modules() for end in ends):
            raise BackboneError(
                f"modules_to_save: '{path}' holds the embeddings, which can't be trained in full beside new_tokens. "
                "Leave one of them out; lora adapts embeddings, too: target_modules."
            )


def all_rows(model: nn.Module) -> AllRows | None:
    """Return the rows of all adapters, if one brings tokens."""
    rows = model._modules.get(CHILD)
    return rows if isinstance(rows, AllRows) else None


def rows_of(model: nn.Module, name: str) -> Rows | None:
    """Return an adapter's rows, if it brings tokens."""
    rows = all_rows(model)
    return rows[name] if rows is not None and name in rows else None  # type: ignore[return-value]


def active_rows(model: nn.Module) -> Rows | None:
    """Return the rows that take part in forward."""
    rows = all_rows(model)
    return None if rows is None or rows.active is None else rows_of(model, rows.active)


def parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return an adapter's rows by their path in the model."""
    rows = rows_of(model, name)
    return {} if rows is None else {f"{CHILD}.{name}.{key}": p for key, p in rows.named_parameters()}


class _HideIds:
    """Forward pre-hook of a lookup: it looks up the first row in place of new tokens."""

    def __init__(self, tokens: NewTokens) -> None:
        self.first, self.end = tokens.first, tokens.end

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ids, *rest = args
        module.__dict__["_ids_given"] = ids
        return (ids.masked_fill((ids >= self.first) & (ids < self.end), 0), *rest)


class _PutInRows:
    """Forward hook of a lookup: new tokens get their rows."""

    def __init__(self, rows: Rows, scale: float) -> None:
        self.rows, self.scale = rows, scale

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        index = module.__dict__.pop("_ids_given") - self.rows.tokens.first
        count = len(self.rows.tokens)
        own = F.embedding(index.clamp(0, count - 1), self.rows.input.to(output) * self.scale)
        return torch.where(((index >= 0) & (index < count))[..., None], own, output)


class _AddLogits:
    """Forward hook of the output layer: the new tokens' logits stand where their ids say."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        rows = self.rows.input if self.rows.output is None else self.rows.output
        own = F.linear(args[0], rows.to(args[0])).to(output)
        before, behind = output[..., : self.rows.tokens.first], output[..., self.rows.tokens.end :]
        return torch.cat([before, own, behind], dim=-1)


def _read(given: Mapping[str, Sequence[int]], size: int) -> NewTokens:
    if not isinstance(given, Mapping):
        raise ConfigError(
            "new_tokens: a mapping from tokens to the ids of their pieces is needed, and a "
            f"{type(given).__name__} was given. adapterlab.new_tokens.pieces(tokenizer, tokens) makes one."
        )
    problems = [
        f"new_tokens: '{token}' needs the ids of its pieces, whole numbers from 0 to {size - 1}, and has {ids!r}."
        for token, ids in given.items()
        if not isinstance(ids, list | tuple)
        or not ids
        or not all(type(index) is int and 0 <= index < size for index in ids)
    ]
    if problems:
        raise ConfigError(problems)
    tokens = NewTokens(given, getattr(given, "first", size), getattr(given, "special", False))
    if not 0 <= tokens.first <= size:
        raise ConfigError(
            f"new_tokens: the tokenizer gave them ids from {tokens.first} on, and the backbone has embeddings for "
            f"{size} tokens: there are others between. Take the backbone's own tokenizer, as it was."
        )
    return tokens


def _means(weight: torch.Tensor, tokens: NewTokens) -> nn.Parameter:
    weight = weight.detach()
    return nn.Parameter(torch.stack([weight[ids].float().mean(0) for ids in tokens.values()]))


def embedding_of(model: Any) -> Any:
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if embedding is None or not isinstance(base_of(embedding), nn.Embedding):
        raise BackboneError(f"new_tokens: this {type(model).__name__} has no table of token embeddings to add to.")
    return embedding


def output_of(model: Any) -> Any:
    return model.get_output_embeddings()


def lookups(model: nn.Module) -> list[Found]:
    """Return the modules that look up in the input embedding's weight, with an adapter's wrapper: T5 has several."""
    weight = embedding_of(model).weight
    found: list[Found] = []
    for path, module in _candidates(model):
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if not inside and base_of(module).weight is weight:
            found.append(Found(path, module))
    return found


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(base_of(module), nn.Embedding):
            yield path, module


def base_of(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _set_vocabulary(model: Any, size: int, vocab_size: int) -> None:
    """Tell everything of the model that goes by the size of its vocabulary."""
    config = _text_config(model)
    before = config.vocab_size
    for owner in (config, model, model.base_model):
        if getattr(owner, "vocab_size", None) == before:
            owner.vocab_size = vocab_size
    bias = getattr(model, "final_logits_bias", None)  # BART and its kin add it to the logits
    if isinstance(bias, torch.Tensor) and bias.shape[-1] != size:
        model.final_logits_bias = F.pad(bias, (0, size - bias.shape[-1]))
