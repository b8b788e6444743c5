"""Load an adapter from a folder or the Hub into a model; the model is untouched if anything doesn't fit."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as PEFTS
from torch import nn

from adapterlab import token_files
from adapterlab.adapter_folder import CONFIG, EXTRA, WEIGHTS, AdapterFiles, adapter_tensors, peft_fields, read
from adapterlab.adapters import METHODS, Method
from adapterlab.adapters.targets import ALL_LINEAR
from adapterlab.addresses import why_offline
from adapterlab.attaching import activate, attach_to, detach
from adapterlab.backbones import describe
from adapterlab.errors import AdapterError, AdapterFolderError, AdapterLabError, did_you_mean
from adapterlab.fingerprint import fingerprint, in_words, same
from adapterlab.guests import guests_of, need_guests
from adapterlab.heads import are_named, label_output, labels_of, set_labels
from adapterlab.token_rows import NewTokens

M = TypeVar("M", bound=nn.Module)


def load(
    model: M,
    source: str | Path,
    name: str | None = None,
    revision: str | None = None,
    *,
    allow_mismatch: bool = False,
    heads: bool = True,
) -> M:
    """Put a saved adapter, with its head and label names, into a model.

    Args:
        model: the backbone that the adapter was trained on, with the same kind of head; the number of labels is
            the adapter's own.
        source: a folder that `save`, a run or peft wrote, or a Hub id.
        name: what to call it in the model; "default" if left out.
        revision: branch, tag or commit on the Hub.
        allow_mismatch: load it though the backbone's weights are not those it was trained on: your word that
            they fit, e.g. after further pretraining.
        heads: False leaves the modules behind that it trained in full, for a model with another head.

    Returns:
        The same model, with the adapter active. If it brings new tokens, `summary` lists them with their ids, and
        `adapterlab.new_tokens.equip(tokenizer, model)` adds them to the backbone's tokenizer.

    Raises:
        AdapterFolderError: not an adapter, or one for another backbone, or it doesn't fit: every tensor that is
            missing, unexpected, of another shape or not finite is named.
        AdapterError: the model has an adapter of that name.
    """
    files = read(local_folder(source, revision))
    method = _method_of(files)
    prefix = method.key_prefix
    tensors = {key.removeprefix(prefix): tensor for key, tensor in files.tensors.items()}
    files = replace(files, tensors={k: t for k, t in tensors.items() if not method.is_ballast(model, k, t)})
    if not heads:
        guests = guests_of(model)
        backbone = guests.backbone if guests is not None else describe(model)
        files = _headless(files)
        rows = {key: t for key, t in files.tensors.items() if token_files.is_row(key)}
        files = replace(files, tensors=method.without_head(model, backbone, files.tensors) | rows)
    tokens = _new_tokens(model, files)
    if tokens is not None:
        fields = {key: value for key, value in files.fields.items() if key not in token_files.PEFT_FIELDS}
        kept = {key: t for key, t in files.tensors.items() if not token_files.is_spare(model, key)}
        files = replace(files, fields=fields, tensors=kept)
    _check_kind(model, files)
    name = name or "default"
    guests = guests_of(model)
    if guests is not None and name in guests.adapters:
        raise AdapterError(f"the model has an adapter '{name}' already; load this one with name='...'.")
    print_ = None
    if not allow_mismatch:
        print_ = _check_backbone(model, files)
        _check_chain(model, files)
    before = list(guests.active) if guests is not None else []
    try:
        options, labels = _options(method, files), _labels(model, files)
        attach_to(model, method.name, name, labels, tokens, options, print_)
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
    try:
        options = method.from_peft(files.fields, files.tensors)
    except KeyError as error:
        raise AdapterFolderError(
            f"{files.folder / CONFIG} has no field {error}, which '{method.name}' needs. Get the file again."
        ) from None
    own = files.extra.get("options")
    if isinstance(own, dict):  # we wrote it: nothing was lost in peft's spelling but what the file folded away
        options = {key: value for key, value in own.items() if value is not None} | options
        if own.get("target_modules") == ALL_LINEAR:
            options |= {key: own[key] for key in ("target_modules", "layers") if key in own}
        return options
    # peft lists the usual names of heads whether the model has them or not
    saved = [str(ending) for ending in files.fields.get("modules_to_save") or []]
    held = [e for e in saved if any(f".{e}." in f".{key}" for key in files.tensors)]
    return options | {"modules_to_save": held}


def _new_tokens(model: nn.Module, files: AdapterFiles) -> NewTokens | None:
    try:
        return token_files.from_json(model, files.extra)
    except AdapterLabError as error:
        raise AdapterFolderError(f"the adapter in '{files.folder}' can't be loaded: {error}") from None


def _check_kind(model: nn.Module, files: AdapterFiles) -> None:
    theirs, ours = files.extra.get("architecture"), type(model).__name__
    if files.extra.get("heads") and theirs != ours:
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' was trained on a {theirs} and doesn't fit this {ours}: "
            "its head would be given something else to read. Load the backbone with the class it was trained with."
        )


def _check_backbone(model: nn.Module, files: AdapterFiles) -> dict[str, Any] | None:
    """Refuse a backbone that the adapter wasn't trained on; return the fingerprint of this one."""
    guests = guests_of(model)
    theirs, ours = files.extra.get("fingerprint"), guests.fingerprint if guests else fingerprint(model, describe(model))
    if theirs is not None and not isinstance(theirs, dict):
        raise AdapterFolderError(f"{files.folder / EXTRA}: fingerprint must be a mapping, and is {theirs!r}.")
    if theirs is None or ours is None or same(theirs, ours):
        return ours
    address = files.fields.get("base_model_name_or_path") or "a backbone without a name"
    mine = getattr(model.config, "_name_or_path", "") or type(model).__name__
    raise AdapterFolderError(
        f"the adapter in '{files.folder}' was trained on {address} ({in_words(theirs)}), and this model is {mine} "
        f"({in_words(ours)}): on other weights it means nothing. Load the backbone that it was trained on; "
        "if you know that it fits, load(..., allow_mismatch=True)."
    )


def _check_chain(model: nn.Module, files: AdapterFiles) -> None:
    guests = guests_of(model)
    frozen = {str(guest.about.get("sha256")) for guest in guests.adapters.values() if guest.frozen} if guests else set()
    links = [link for link in files.extra.get("adapters") or [] if link.get("kept") == "beside"]
    if {link["sha256"] for link in links} == frozen or not links:
        return
    raise AdapterFolderError(
        f"the adapter in '{files.folder}' was trained beside {', '.join(link['adapter'] for link in links)}, and "
        "this model doesn't have it. adapterlab.chain.lay(model, tokenizer, [...]) puts it in first."
    )


def _headless(files: AdapterFiles) -> AdapterFiles:
    paths = tuple(f"{path}." for path in files.extra.get("heads") or [])
    options = files.extra.get("options")
    extra = files.extra | {"heads": [], "labels": {}}
    if isinstance(options, dict):
        extra["options"] = options | {"modules_to_save": []}
    fields = {key: value for key, value in files.fields.items() if key != "modules_to_save"}
    kept = {key: tensor for key, tensor in files.tensors.items() if not key.startswith(paths or ("\0",))}
    return replace(files, fields=fields, extra=extra, tensors=kept)


def _labels(model: nn.Module, files: AdapterFiles) -> list[str] | None:
    """Return the adapter's label names where its head isn't of the model's size."""
    guests = guests_of(model)
    known = guests.labels_before if guests else labels_of(model)
    labels = list(files.labels.values())
    if not labels and not files.extra:  # peft's folder names no labels: the head's size tells how many there are
        output = label_output(model, guests.backbone if guests else describe(model), guests)
        rows = [len(t) for key, t in files.tensors.items() if output is not None and key == f"{output}.weight"]
        labels = [f"LABEL_{index}" for index in range(rows[0])] if rows else []
    return labels if labels and len(labels) != len(known) else None


def _check_fields(files: AdapterFiles, method: Method, known: set[str]) -> None:
    """Refuse a file that says more than is read here: it may change what the adapter computes."""
    foreign = [field for field, value in files.fields.items() if value and field not in known]
    if foreign:
        listed = ", ".join(f"{field}={files.fields[field]!r}" for field in foreign)
        raise AdapterFolderError(
            f"{files.folder / CONFIG} has fields that '{method.name}' of peft {peft.__version__} doesn't have: "
            f"{listed}.{did_you_mean(foreign[0], known)} They may change what the adapter computes. Upgrade peft if a "
            "newer one wrote the file; if you know that they don't matter, take them out of it."
        )


def _fill(model: nn.Module, method: Method, files: AdapterFiles, name: str) -> None:
    guests = need_guests(model)
    guest = guests.adapters[name]
    method.adopt(model, name, files.fields)
    known = {field.name for field in dataclasses.fields(PEFTS.get(method.peft_type, peft.PeftConfig))}
    if not known.issuperset(files.fields):  # else there is no need to find out what this adapter's own are
        known.update(peft_fields(model, guests, guest))
    _check_fields(files, method, known)
    if not files.extra.get("heads"):  # none was trained with it: then the model's own is the right one
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
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise AdapterFolderError(
            f"the adapter in '{files.folder}' ({method.name}, made for "
            f"{files.extra.get('architecture') or files.fields.get('base_model_name_or_path') or 'an unnamed model'}) "
            f"doesn't fit this {type(model).__name__}:\n{listed}\n"
            "Load it into the backbone and head that it was trained on."
        )
    method.load_state(model, name, guest.config, files.tensors)
    with torch.no_grad():
        for key, rows in token_files.saved(model, name).items():
            rows.copy_(files.tensors[key])
    for path, head in guest.heads.items():
        head.load_state_dict({key: files.tensors[f"{path}.{key}"] for key in head.state_dict()})
    guest.about = {
        key: files.extra[key] for key in ("backbone", "task", "max_length", "adapters") if key in files.extra
    }
    if guest.heads and files.problem_type is not None:
        config: Any = model.config
        guest.problem_type = config.problem_type = files.problem_type
    if guest.heads and are_named(files.labels):
        guest.labels = files.labels
        set_labels(model, files.labels)
