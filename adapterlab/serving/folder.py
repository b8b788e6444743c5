"""A folder that serves: weights (int8 or not), config, tokenizer, and a manifest of what the model is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from adapterlab import __version__
from adapterlab.adapter_folder import read_json
from adapterlab.backbones import LINEAR
from adapterlab.errors import AdapterLabError, DeployedFolderError, did_you_mean
from adapterlab.guests import guests_of
from adapterlab.kernels.int8 import Int8Embedding, Int8Linear, is_quantized
from adapterlab.pretrained import quiet
from adapterlab.serving.manifest import FORMAT, MANIFEST, WEIGHTS, finish, mapping, read_manifest, write_json
from adapterlab.serving.quantizing import put
from adapterlab.staging import new_folder


def save_deployed(
    model: Any, folder: str | Path, tokenizer: Any = None, *, about: Mapping[str, Any] | None = None
) -> Path:
    """Write a model, in int8 or as it is, into a new folder from which `load_deployed` serves it.

    Args:
        model: of transformers, without adapters: merged or quantized.
        folder: one that doesn't exist yet, or is empty.
        tokenizer: written beside it.
        about: what else the folder should say of itself (task, length of texts); plain JSON.

    Raises:
        DeployedFolderError: the folder holds something, or can't be written; nothing half-written stays.
        AdapterLabError: the model has adapters, or is of no class of transformers.
    """
    if (guests := guests_of(model)) is not None:
        named = ", ".join(guests.adapters)
        raise AdapterLabError(f"the model has adapters ({named}). Fold them in first: adapterlab.merge(model).")
    if _class_of(type(model).__name__) is not type(model):
        raise AdapterLabError(
            f"{type(model).__name__} is no model of transformers {transformers.__version__}, and load_deployed makes "
            "no others: a folder must not say what code to run. Save its weights with model.save_pretrained."
        )
    with new_folder(Path(folder), DeployedFolderError) as place:
        write(model, place, tokenizer, about or {})
    return Path(folder)


def write(model: Any, place: Path, tokenizer: Any, about: Mapping[str, Any]) -> None:
    """Write what a deployed folder holds, the manifest last: it has the sizes and hashes of all other files."""
    tensors, tied = _distinct(model)
    scheme = "int8" if is_quantized(model) else None
    save_file(tensors, place / WEIGHTS[scheme], metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    if scheme is not None:
        config["quantization_config"] = {"quant_method": f"adapterlab-{scheme}"}
    write_json(place / "config.json", config)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    kinds = {Int8Linear: "linears", Int8Embedding: "embeddings"}
    quantized: dict[str, list[str]] = {name: [] for name in kinds.values()}
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module) in kinds:
            quantized[kinds[type(module)]].append(path)
    finish(place, {
        **about,
        "format": FORMAT,
        "adapterlab": __version__,
        "class": type(model).__name__,
        "scheme": scheme,
        "quantized": quantized,
        "tied": tied,
    })  # fmt: skip


def load_deployed(folder: str | Path) -> Any:
    """Load a model from a deployed folder: one of transformers, of its class, ready for `pipeline` and `generate`.

    Weights are mapped from the file, not copied; those in int8 are packed for this CPU's kernels. Nothing is imported
    by a name from the folder but a class of transformers.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        DeployedFolderError: it is none, of a newer format, or a file or a tensor is missing, cut short, of another
            shape, or was changed.
    """
    return open_deployed(Path(folder))[0]


def open_deployed(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model of a deployed folder, as `load_deployed` does, and what the folder says of itself."""
    manifest = read_manifest(folder)
    weights = folder / WEIGHTS[manifest["scheme"]]
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise DeployedFolderError(f"{weights} is damaged: {error}. Get the file again.") from None
    model = _empty(folder, manifest)
    for path, key in mapping(manifest, "tied", folder).items():
        if key in tensors:
            tensors[path] = tensors[key]
    _check_fit(model, tensors, weights)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.pack()
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval().requires_grad_(False), manifest


def _distinct(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a model's tensors, each once, and for the other names of one the name that it is kept under."""
    first: dict[tuple[Any, ...], str] = {}
    tensors, tied = {}, {}
    for name, tensor in model.state_dict().items():
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in first:
            tied[name] = first[same]
        else:
            first[same] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, tied


def _empty(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """Return a model without weights, with int8 modules where the manifest has them."""
    name = manifest.get("class")
    kind = _class_of(name)
    if kind is None:
        raise DeployedFolderError(
            f"{folder / MANIFEST}: class {name!r} is no model of transformers {transformers.__version__}."
        )
    given = read_json(folder / "config.json")
    given.pop("quantization_config", None)
    with quiet(), init_empty_weights(include_buffers=False):
        model = kind(kind.config_class.from_dict(given))
    quantized = mapping(manifest, "quantized", folder)
    known = dict(model.named_modules(remove_duplicate=False))
    for sort, make, kinds in (
        ("linears", _empty_linear, LINEAR),
        ("embeddings", _empty_embedding, (torch.nn.Embedding,)),
    ):
        paths = quantized.get(sort, [])
        if not isinstance(paths, list):
            raise DeployedFolderError(f"{folder / MANIFEST}: quantized.{sort} must be a list of modules.")
        for path in paths:
            module = known.get(path) if isinstance(path, str) else None
            if type(module) not in kinds:
                what = (
                    f"no module '{path}'.{did_you_mean(str(path), known)}" if module is None else f"'{path}', no {sort}"
                )
                raise DeployedFolderError(f"{folder / MANIFEST}: {name} has {what}")
            put(model, path, make(module))
    return model


def _class_of(name: Any) -> Any:
    """Return the model of transformers with that name, or None."""
    kind: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) else None


def _empty_linear(module: Any) -> Int8Linear:
    rows, columns = module.weight.shape
    if not isinstance(module, nn.Linear):  # GPT-2's Conv1D has it the other way round
        rows, columns = columns, rows
    bias = None if module.bias is None else torch.empty(rows, device="meta")
    weight = torch.empty(rows, columns, dtype=torch.int8, device="meta")
    return Int8Linear(weight, torch.empty(rows, device="meta"), bias)


def _empty_embedding(module: Any) -> Int8Embedding:
    weight = torch.empty(module.weight.shape, dtype=torch.int8, device="meta")
    return Int8Embedding(weight, torch.empty(len(weight), device="meta"), module.padding_idx)


def _check_fit(model: nn.Module, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    problems += [f"{name} is unexpected" for name in tensors.keys() - wanted.keys()]
    for name in wanted.keys() & tensors.keys():
        asked, found = wanted[name], tensors[name]
        if asked.shape != found.shape:
            problems.append(f"{name} has the shape {tuple(found.shape)}, not {tuple(asked.shape)}")
        elif (asked.dtype == torch.int8) != (found.dtype == torch.int8):
            problems.append(f"{name} is in {found.dtype}, not {asked.dtype}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DeployedFolderError(f"{file} doesn't fit: {'; '.join(sorted(problems)[:5])}{more}.")
