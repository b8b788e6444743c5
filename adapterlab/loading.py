"""Load an adapter from a folder or the Hub into a model; the model is untouched if anything doesn't fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from adapterlab.adapter_folder import CONFIG, EXTRA, WEIGHTS, AdapterFiles, adapter_tensors, read
from adapterlab.adapters import METHODS, Method
from adapterlab.addresses import why_offline
from adapterlab.attaching import attach, detach
from adapterlab.errors import AdapterFolderError, AdapterLabError
from adapterlab.guests import need_guests
from adapterlab.heads import are_named, labels_of

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
    labels_before = labels_of(model)
    _check_labels(model, files)
    name = name or "default"
    try:
        options = _options(method, files)
    except (KeyError, TypeError) as error:
        raise AdapterFolderError(
            f"{files.folder / CONFIG} lacks or garbles a field of {method.name}: {error}."
        ) from None
    attach(model, method.name, name, **options)
    try:
        _fill(model, method, files, name)
    except AdapterLabError as error:
        detach(model, name)
        if labels_of(model) != labels_before:
            _set_labels(model, labels_before)
        raise AdapterFolderError(str(error)) from None
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
    options = method.from_peft(files.fields)
    own = files.extra.get("options")
    if isinstance(own, dict):  # we wrote it: nothing was lost in peft's spelling, but what the file folded away
        options = {key: value for key, value in own.items() if value is not None} | options
        if own.get("target_modules") == "all-linear":
            options["target_modules"] = "all-linear"
    heads = {str(path) for path in files.extra.get("heads", [])}
    to_save = [str(path) for path in files.fields.get("modules_to_save") or [] if str(path) not in heads]
    if not files.extra:  # peft lists the usual names of heads whether the model has them or not
        to_save = [p for p in to_save if any(key == p or key.startswith(p + ".") for key in files.tensors)]
    return options | {"modules_to_save": options.get("modules_to_save") or to_save}


def _check_labels(model: nn.Module, files: AdapterFiles) -> None:
    theirs, ours = files.labels, labels_of(model)
    if not theirs or not ours:
        return
    if len(theirs) != len(ours) or (are_named(ours) and are_named(theirs) and ours != theirs):
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' knows the labels {list(theirs.values())}, and the model has "
            f"{list(ours.values())}. Build the model with num_labels={len(theirs)} and those names: "
            f"from_pretrained(..., num_labels={len(theirs)}, id2label={theirs})."
        )


def _fill(model: nn.Module, method: Method, files: AdapterFiles, name: str) -> None:
    guests = need_guests(model)
    guest = guests.adapters[name]
    method.adopt(model, name, files.fields)
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
    if files.labels and guest.heads:
        guest.labels = files.labels
        _set_labels(model, files.labels)


def _set_labels(model: nn.Module, labels: dict[int, str]) -> None:
    config: Any = model.config
    config.id2label = dict(labels)
    config.label2id = {label: index for index, label in labels.items()}
