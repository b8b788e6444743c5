"""Quantize a model for serving: linears and embeddings in int8, what is named stays as it is."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterlab.backbones import LINEAR, describe
from adapterlab.errors import BackboneError, ConfigError, did_you_mean, unknown_name
from adapterlab.guests import guests_of
from adapterlab.kernels.int8 import Int8Embedding, Int8Linear, is_quantized, rounded
from adapterlab.merging import merge

M = TypeVar("M", bound=nn.Module)
SCHEMES = ("int8",)
FEWEST = 32  # rows of an embedding that is worth it: token types aren't


class Place(NamedTuple):
    """A module that can be quantized."""

    path: str
    module: nn.Module


def quantize(model: M, scheme: str = "int8", *, skip: Iterable[str] = ()) -> M:
    """Store a model's linears and embeddings in int8, in place, for inference on a CPU; adapters are merged first.

    A linear has a scale for each output, and what it reads is quantized as it comes; an embedding has a scale for each
    row. Weights that are tied become int8 together or not at all. All else, heads and poolers too, is in fp32.

    Args:
        model: of transformers, with or without adapters.
        scheme: "int8".
        skip: modules that stay as they are: paths, or patterns such as "*.layer.0.*" or "*.query".

    Returns:
        The same object, in eval mode, its parameters frozen.

    Raises:
        AdapterError: an adapter can't be merged; the model is as it was then.
        BackboneError: nothing here can be quantized, it is quantized already, a weight isn't finite, or the model
            answers quite otherwise in int8; it is in fp32 then, with the adapter merged.
        ConfigError: there is no such scheme, or no such module to skip.
    """
    if scheme not in SCHEMES:
        raise ConfigError(unknown_name("scheme", scheme, SCHEMES))
    if is_quantized(model):
        raise BackboneError("this model is in int8 already. Quantize the model that it was made of.")
    _chosen(model, skip)  # before a merge that can't be undone: what is named there has the same paths after it
    if guests_of(model) is not None:
        merge(model)
    chosen = _chosen(model, skip)
    model.eval().requires_grad_(False).float()
    before = _answers(model)
    made = converted(chosen)
    for place in chosen:
        put(model, place.path, made[place.path])
    if not _is_near(_answers(model), before):
        for place in chosen:
            put(model, place.path, place.module)
        raise BackboneError(
            f"{type(model).__name__} answers quite otherwise in int8: it reads some of its weights by itself, not "
            "through their modules. It was left in fp32; what it reads can be left out by skip."
        )
    if any(parameter.is_cuda for parameter in model.parameters()):
        warnings.warn(
            "int8 is for CPUs: on a GPU the weights are made numbers again at each use, which is slower than bf16. "
            "There, model.to(torch.bfloat16) is the better choice.",
            stacklevel=2,
        )
    return model


def places(model: nn.Module) -> list[Place]:
    """Return what can be quantized: linears inside the layers, embeddings, and the output layer of a language model.

    With adapters in it, the paths are those that they will have when these are merged.
    """
    backbone = guests.backbone if (guests := guests_of(model)) else describe(model)
    output, words = cast(Any, model).get_output_embeddings(), cast(Any, model).get_input_embeddings()
    positions = backbone.positions()
    inside = {id(module) for _, module in backbone.linears(model)}
    found = []
    for path, module in model.named_modules():
        plain = path.replace(".base_layer", "")
        if type(module) is nn.Embedding:
            # others may be read past their modules: DeBERTa's relative positions, T5's
            known = plain == positions or module is words or module.weight is getattr(words, "weight", None)
            fits = known and module.num_embeddings >= FEWEST
        else:
            fits = type(module) in LINEAR and (id(module) in inside or module is output)
        if fits and _is_models_own(model, path):
            found.append(Place(plain, module))
    return found


def _is_models_own(model: nn.Module, path: str) -> bool:
    """Whether a module isn't an adapter's: inside one of peft's layers, only `base_layer` is the model's."""
    parts = path.split(".")
    owners = ((".".join(parts[:depth]), parts[depth]) for depth in range(1, len(parts)))
    return all(key == "base_layer" or not isinstance(model.get_submodule(o), BaseTunerLayer) for o, key in owners)


def left_out(paths: list[str], skip: Iterable[str]) -> set[str]:
    """Return those of the paths that `skip` names.

    Raises:
        ConfigError: a pattern fits none.
    """
    found: set[str] = set()
    problems = []
    for pattern in [skip] if isinstance(skip, str) else skip:
        taken = {path for path in paths if fnmatch.fnmatchcase(path, pattern) or path.startswith(pattern + ".")}
        if not taken:
            names = {name for path in paths for name in (path, path.rpartition(".")[2])}
            problems.append(
                f"skip: '{pattern}' is no module that would be quantized.{did_you_mean(pattern.strip('*.'), names)} "
                f"There are {len(paths)}, such as {', '.join(paths[:3])}; patterns are like '*.layer.0.*'."
            )
        found |= taken
    if problems:
        raise ConfigError(problems)
    return found


def _chosen(model: nn.Module, skip: Iterable[str]) -> list[Place]:
    """Return what becomes int8. Of weights that are tied all ends do, or none.

    Raises:
        BackboneError: that is nothing, or a weight isn't finite.
        ConfigError: there is no such module to skip.
    """
    every = places(model)
    kept = left_out([place.path for place in every], skip)
    chosen = {place.path: place for place in every if place.path not in kept}
    ends: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        ends.setdefault(id(parameter), set()).add(name.rpartition(".")[0].replace(".base_layer", ""))
    weights = {path: cast(Any, place.module).weight for path, place in chosen.items()}
    for path, weight in weights.items():
        if not ends[id(weight)] <= weights.keys():
            del chosen[path]
    if not chosen:
        rest = "all of it is skipped" if kept else "it has no linears or embeddings that adapterlab knows of"
        raise BackboneError(f"nothing in this {type(model).__name__} can be quantized: {rest}.")
    wrong = [path for path in chosen if not torch.isfinite(weights[path]).all()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BackboneError(f"{wrong[0]}{more} has weights that aren't finite, so nothing can be made of them.")
    return list(chosen.values())


def _answers(model: Any) -> torch.Tensor | None:
    """Return what the model says to a few tokens; None where that takes other inputs."""
    words = model.get_input_embeddings()
    ids = torch.randint(words.num_embeddings, (2, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    try:
        with torch.inference_mode():
            found: torch.Tensor = model(**batch)[0]
        return found.float()
    except Exception:  # speech, pictures, choices between texts, ...
        return None


def _is_near(found: torch.Tensor | None, before: torch.Tensor | None) -> bool:
    if before is None:
        return True
    # a task's logits may all be small: what is far off is so by many times
    return found is not None and bool((found - before).norm() <= before.norm() + 1e-3 * before.numel() ** 0.5)


def converted(chosen: list[Place]) -> dict[str, nn.Module]:
    """Return a module in int8 for each; weights that were tied are so again."""
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    made: dict[str, nn.Module] = {}
    for path, module in chosen:
        given: Any = module
        transposed = isinstance(module, Conv1D)
        if id(given.weight) not in known:
            known[id(given.weight)] = rounded(given.weight.T if transposed else given.weight)
        weight, scale = known[id(given.weight)]
        weight = weight.contiguous()
        if isinstance(module, nn.Embedding):
            made[path] = Int8Embedding(weight, scale, module.padding_idx)
        else:
            bias = None if given.bias is None else given.bias.detach().float()
            made[path] = Int8Linear(weight, scale, bias)
    return made


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path."""
    owner, _, key = path.rpartition(".")
    setattr(model.get_submodule(owner), key, module)
