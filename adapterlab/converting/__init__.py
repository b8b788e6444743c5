"""Adapter folders of AdapterHub's `adapters` library to ours, and back; on the files alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from adapterlab import adapter_folder
from adapterlab.adapters import parse_config
from adapterlab.converting import bottleneck, hub_folder, lora, own_folder, prefix
from adapterlab.converting.fields import Tensors
from adapterlab.converting.hub_folder import CONFIG, HubFolder
from adapterlab.converting.own_folder import OwnFolder
from adapterlab.errors import AdapterFolderError, AdapterLabError
from adapterlab.staging import check_free, new_folder

Format = Literal["adapterhub", "adapterlab"]
_THEIR_CLASSES = ("AdapterModel", "ModelWithHeads")  # classes of the library, which transformers doesn't have
FORMATS: tuple[Format, ...] = ("adapterhub", "adapterlab")


@dataclass(frozen=True)
class Converted:
    """What `convert` did."""

    folder: Path
    to: Format
    method: str  # bottleneck, lora or prefix
    model_type: str
    model_class: str  # of the model to load it into; "" where nothing says
    notes: tuple[str, ...]  # what was left out or read in another way


def convert(
    source: str | Path,
    destination: str | Path,
    to: Format | None = None,
    *,
    name: str | None = None,
    model_class: str | None = None,
) -> Converted:
    """Convert an adapter folder of AdapterHub into ours, or ours (or peft's) into AdapterHub's.

    Bottleneck adapters, LoRA and prefix tuning, with heads for classification. No weights of a backbone are needed.

    Args:
        source: the folder; a finished run will do.
        destination: a folder that doesn't exist or is empty.
        to: "adapterhub" or "adapterlab"; the one that `source` isn't, if left out.
        name: what to call the adapter in AdapterHub; as in `source`, or "default".
        model_class: class of the model to load it into, e.g. "BertModel"; as in `source` if left out.

    Raises:
        AdapterFolderError: `source` is no such folder, or holds what the other side can't express (all of it is
            named), or `destination` is taken. Nothing is written then.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if to is not None and to not in FORMATS:
        raise AdapterFolderError(f"to='{to}': convert writes {' or '.join(FORMATS)}.")
    check_free(destination, AdapterFolderError)
    if not source.is_dir():
        raise AdapterFolderError(
            f"'{source}' is no folder here ({Path.cwd()}). Give the folder of an adapter or a run."
        )
    fields = adapter_folder.read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
    if fields and "peft_type" not in fields and not hub_folder.is_one(fields):
        raise AdapterFolderError(
            f"{source / CONFIG} is neither AdapterHub's, with 'config' and 'model_type', nor ours or peft's, with "
            f"'peft_type'. It has: {', '.join(list(fields)[:8])}."
        )
    here: Format = "adapterhub" if hub_folder.is_one(fields) else "adapterlab"
    if to == here:
        raise AdapterFolderError(
            f"'{source}' is in the form of {to} already; without 'to' it is converted to the other."
        )
    if here == "adapterhub":
        if name is not None:
            raise AdapterFolderError(
                "name: here an adapter gets its name when it is loaded, adapterlab.load(model, folder, name=...)."
            )
        hub = hub_folder.read(source, fields)
        own = _to_own(hub, source, model_class)
        _write(destination, own.files())
        return _done(destination, "adapterlab", own)
    files = adapter_folder.read(source)
    own = own_folder.read(files, model_class)
    hub = _to_hub(own, files.folder, name)
    _write(destination, hub.files(own.headed))
    return _done(destination, "adapterhub", own)


def _done(folder: Path, to: Format, own: OwnFolder) -> Converted:
    return Converted(folder, to, own.method, own.architecture.model_type, own.model_class, own.notes)


def _to_own(hub: HubFolder, source: Path, model_class: str | None) -> OwnFolder:
    _check_tensors(hub.tensors, source)
    method = {"lora": "lora", "prefix_tuning": "prefix"}.get(str(hub.config.get("architecture")), "bottleneck")
    module: Any = {"lora": lora, "prefix": prefix, "bottleneck": bottleneck}[method]
    file = source / CONFIG
    options, tensors = module.to_ours(hub.config, hub.tensors, hub.architecture, file)
    try:
        config = parse_config(method, options)
    except AdapterLabError as error:
        raise AdapterFolderError(f"{file}: {error}") from None
    if model_class is not None:
        if own_folder.type_of(model_class) != hub.architecture.model_type:
            raise AdapterFolderError(f"'{source}' is for {hub.architecture.model_type}, and {model_class} is none.")
        if hub.head is not None and model_class != hub.head.model_class:
            raise AdapterFolderError(
                f"'{source}' has the head of a {hub.head.model_class}, which {model_class} can't take. "
                "Leave out the model's class, or delete the head's files from a copy of the folder."
            )
    told = model_class or ("" if hub.model_class.endswith(_THEIR_CLASSES) else hub.model_class)
    record = {
        "name": hub.name,
        "model_class": hub.model_class,
        "model_type": hub.architecture.model_type,
        "hidden_size": hub.hidden_size,
        "leave_out": hub.config.get("leave_out") or [],
    }
    notes = hub.notes
    if method == "prefix" and hub.architecture.model_type in prefix.SDPA_DIFFERS:
        notes += (
            "it gives what the library gives with attn_implementation='eager'. With 'sdpa', its default, the library "
            f"masks prefixes on {hub.architecture.model_type} wrongly: one trained so means something else here.",
        )
    return OwnFolder(
        method, config, hub.architecture, told, hub.model_name, hub.hidden_size, tensors, hub.head, None, record, notes
    )


def _to_hub(own: OwnFolder, source: Path, name: str | None) -> HubFolder:
    _check_tensors(own.tensors, source)
    record = own.record
    name = name or str(record.get("name") or "default")
    if "." in name:
        raise AdapterFolderError(f"name '{name}': without '.', since it becomes part of the tensors' names.")
    if own.method == "lora":
        left_out = record.get("leave_out")
        if left_out is None and own.layers is not None:
            left_out = own.architecture.left_out(own.architecture.layers(own.tensors), own.layers)
        config, tensors = lora.to_hub(own.config, own.tensors, own.architecture, left_out, source)
    elif own.method == "prefix":
        config, tensors = prefix.to_hub(own.config, own.tensors, own.architecture, source)
    else:
        config, tensors = bottleneck.to_hub(own.config, own.tensors, own.architecture, own.layers, source)
    hidden = own.hidden_size or (tensors and next(iter(tensors.values())).shape[-1])
    return HubFolder(name, own.architecture, own.model_class, own.model_name, hidden or None, config, tensors, own.head)


def _check_tensors(tensors: Tensors, source: Path) -> None:
    if not tensors:
        raise AdapterFolderError(f"the file with the weights in '{source}' holds no adapter.")


def _write(destination: Path, files: dict[str, Any]) -> None:
    with new_folder(destination, AdapterFolderError) as folder:
        for name, content in files.items():
            if name.endswith(".json"):
                (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            else:
                save_file({key: t.contiguous() for key, t in content.items()}, folder / name, metadata={"format": "pt"})
