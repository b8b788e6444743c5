"""Load an adapter from a folder or the Hub into a model; the model is untouched if anything doesn't fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from adapterlab.adapter_folder import CONFIG, EXTRA, WEIGHTS, AdapterFiles, adapter_tensors, read
from adapterlab.adapters import METHODS, Method
from adapterlab.adapters.targets import ALL_LINEAR
from adapterlab.addresses import why_offline
from adapterlab.attaching import activate, attach, detach
from adapterlab.errors import AdapterError, AdapterFolderError, AdapterLabError
from adapterlab.guests import guests_of, need_guests
from adapterlab.heads import are_named, labels_of, set_labels

M = TypeVar("M", bound=nn.Module)


def load(model: M, source: str | Path, name: str | None = None, revision: str | None = None) -> M:
    """Put a saved adapter, with its head and label names, into a model.

    Args:
        model: the backbone that the adapter was trained on, with the same task head.
        source: a folder that `save`, a run or peft wrote, or a Hub id.
        name: what to call it in the model; "default" if left out.
        revision: branch, tag or commit on the Hub.

    Returns:
        The same model, with the adapter active.

    Raises:
        AdapterFolderError: not an adapter, or it doesn't fit: every tensor that is missing, unexpected or of
            another shape is named, as are other label names.
        AdapterError: the model has an adapter of that name.
    """
    files = read(local_folder(source, revision))
    method = _method_of(files)
    prefix = method.key_prefix
    files = replace(files, tensors={key.removeprefix(prefix): tensor for key, tensor in files.tensors.items()})
    _check_kind(model, files)
    name = name or "default"
    guests = guests_of(model)
    if guests is not None and name in guests.adapters:
        raise AdapterError(f"the model has an adapter '{name}' already; load this one with name='...'.")
    before = list(guests.active) if guests is not None else []
    try:
        attach(model, method.name, name, **_options(method, files))
        _fill(model, method, files, name)
    except Exception as error:  # whatever a stranger's file leads to, the model must be as it was
        guests = guests_of(model)
        if guests is not None and name in guests.adapters:
            detach(model, name)
        if guests_of(model) is not None:
            activate(model, before)
        if isinstance(error, AdapterFolderError):
            raise
        reason = str(error) if isinstance(error, AdapterLabError) else f"{type(error).__name__}: {error}"
        raise AdapterFolderError(f"the adapter in '{files.folder}' can't be loaded: {reason}") from error
    return model


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an adapter, fetched from the Hub if it isn't one here.

    Raises:
        AdapterFolderError: it is neither here nor there.
    """
    path = Path(source)
    if path.exists() or isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        return path.expanduser()
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, WEIGHTS, EXTRA]
    reason = why_offline()
    try:
        return Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=wanted, local_files_only=reason is not None
            )
        )
    except Exception as error:  # the Hub's client raises its own errors, its HTTP library's and ValueError
        reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterFolderError(
            f"'{source}' is no folder here ({Path.cwd()}), and the Hub can't give it: {reason}. "
            "Give the path of an adapter folder or of a finished run."
        ) from None


def _method_of(files: AdapterFiles) -> Method:
    named = files.extra.get("method")
    for name, method in METHODS:
        if name == named or (named is None and method.peft_type == files.peft_type):
            return method
    known = ", ".join(sorted(method.peft_type for _, method in METHODS))
    raise AdapterFolderError(
        f"{files.folder / CONFIG} is of peft_type '{files.peft_type}'"
        f"{f' (method {named!r})' if named else ''}, which no method here reads. Known: {known}."
    )


def _options(method: Method, files: AdapterFiles) -> dict[str, Any]:
    options = method.from_peft(files.fields, files.tensors)
    own = files.extra.get("options")
    if isinstance(own, dict):  # we wrote it: nothing was lost in peft's spelling but what the file folded away
        options = {key: value for key, value in own.items() if value is not None} | options
        if own.get("target_modules") == ALL_LINEAR:
            options["target_modules"] = ALL_LINEAR
        return options
    # peft lists the usual names of heads whether the model has them or not
    saved = [str(ending) for ending in files.fields.get("modules_to_save") or []]
    held = [e for e in saved if any(f".{e}." in f".{key}" for key in files.tensors)]
    return options | {"modules_to_save": held}


def _check_kind(model: nn.Module, files: AdapterFiles) -> None:
    theirs, ours = files.extra.get("architecture"), type(model).__name__
    if files.extra.get("heads") and theirs != ours:
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' was trained on a {theirs} and doesn't fit this {ours}: "
            "its head would be given something else to read. Load the backbone with the class it was trained with."
        )
    guests = guests_of(model)
    labels, known = files.labels, guests.labels_before if guests else labels_of(model)
    if not labels or not known:
        return
    if len(labels) != len(known) or (are_named(known) and are_named(labels) and known != labels):
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' knows the labels {list(labels.values())}, and the model has "
            f"{list(known.values())}. Build the model with num_labels={len(labels)} and those names: "
            f"from_pretrained(..., num_labels={len(labels)}, id2label={labels})."
        )


def _fill(model: nn.Module, method: Method, files: AdapterFiles, name: str) -> None:
    guests = need_guests(model)
    guest = guests.adapters[name]
    method.adopt(model, name, files.fields)
    if not files.extra:  # peft may have trained no head: then the model's own is the right one
        for path in [path for path in guest.heads if not any(key.startswith(path + ".") for key in files.tensors)]:
            del guest.heads[path]
        activate(model, name)
    expected = {key: tensor.shape for key, tensor in adapter_tensors(model, guest).items()}
    problems = [f"missing: {key} {list(shape)}" for key, shape in expected.items() if key not in files.tensors]
    problems += [f"unexpected: {key} {list(t.shape)}" for key, t in files.tensors.items() if key not in expected]
    problems += [
        f"other shape: {key} is {list(files.tensors[key].shape)} in the file and {list(shape)} in the model"
        for key, shape in expected.items()
        if key in files.tensors and files.tensors[key].shape != shape
    ]
    problems += [f"not finite: {key}" for key, tensor in files.tensors.items() if not torch.isfinite(tensor).all()]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:12])
        more = f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' ({method.name}, made for "
            f"{files.extra.get('architecture') or files.fields.get('base_model_name_or_path') or 'an unnamed model'}) "
            f"doesn't fit this {type(model).__name__}:\n{listed}{more}\n"
            "Load it into the backbone and head that it was trained on."
        )
    method.load_state(model, name, guest.config, files.tensors)
    for path, head in guest.heads.items():
        head.load_state_dict({key: files.tensors[f"{path}.{key}"] for key in head.state_dict()})
    guest.about = {key: files.extra[key] for key in ("backbone", "task", "max_length") if key in files.extra}
    if guest.heads and are_named(files.labels):
        guest.labels = files.labels
        set_labels(model, files.labels)
