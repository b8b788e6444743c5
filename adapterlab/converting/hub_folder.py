"""An adapter folder of the `adapters` library (AdapterHub): read, and the files of one to write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from adapterlab.adapter_folder import read_json
from adapterlab.converting import heads
from adapterlab.converting.fields import LORA, VERSION, Tensors, refusal
from adapterlab.converting.heads import Head
from adapterlab.converting.names import Architecture
from adapterlab.errors import AdapterFolderError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
_HOLDERS = ("adapters", "loras", "prefix_tunings")  # the adapter's name follows one of these in a tensor's name


@dataclass(frozen=True)
class HubFolder:
    """What such a folder holds. Tensors' names are from the base model, without the adapter's name."""

    name: str
    architecture: Architecture
    model_class: str
    model_name: str | None
    hidden_size: int | None
    config: dict[str, Any]
    tensors: Tensors
    head: Head | None = None
    notes: tuple[str, ...] = ()

    def files(self, headed: bool) -> dict[str, dict[str, Any] | Tensors]:
        """Return the files to write: JSON objects and tensors by name."""
        common = {
            "hidden_size": self.hidden_size,
            "model_name": self.model_name or "",
            "model_type": self.architecture.model_type,
            "version": VERSION,
        }
        about = {"config": self.config, "model_class": self.model_class, "name": self.name}
        tensors = {self.architecture.with_base(_named(key, self.name), headed): t for key, t in self.tensors.items()}
        files: dict[str, Any] = {WEIGHTS: tensors, CONFIG: dict(sorted((common | about).items()))}
        if self.head is not None:
            files |= {
                heads.WEIGHTS: self.head.tensors,
                heads.CONFIG: dict(sorted((common | heads.to_hub(self.head)).items())),
            }
        return files


def is_one(fields: dict[str, Any]) -> bool:
    """Whether an adapter_config.json is AdapterHub's."""
    return "peft_type" not in fields and "config" in fields and "model_type" in fields


def read(folder: Path, fields: dict[str, Any]) -> HubFolder:
    """Read the folder that has this adapter_config.json.

    Raises:
        AdapterFolderError: the weights are missing, damaged or a pickle, or the architecture isn't known.
    """
    name, config = fields.get("name"), fields["config"]
    if not isinstance(name, str) or not name or not isinstance(config, dict):
        raise refusal(folder / CONFIG, [f"name={name!r}, config={config!r}: a name and an object are needed."])
    architecture = Architecture(str(fields["model_type"]), folder)
    raw = _weights(folder)
    tensors = {_unnamed(architecture.without_base(key), name): tensor for key, tensor in raw.items()}
    config, notes = _as_loaded(config, fields, raw)
    head: Head | str | None = None
    if (folder / heads.CONFIG).is_file():
        if (folder / heads.WEIGHTS).is_file():
            head = heads.from_hub(
                read_json(folder / heads.CONFIG), _load(folder / heads.WEIGHTS), architecture.model_type
            )
        else:
            head = f"in {heads.PICKLE}, a pickle"
    if isinstance(head, str):
        notes.append(f"the prediction head, {head}, is left out: heads for classification are converted.")
        head = None
    hidden = fields.get("hidden_size")
    return HubFolder(
        name,
        architecture,
        head.model_class if head else str(fields.get("model_class") or ""),
        str(fields.get("model_name") or "") or None,
        hidden if isinstance(hidden, int) else None,
        config,
        tensors,
        head,
        tuple(notes),
    )


def _weights(folder: Path) -> Tensors:
    if (folder / WEIGHTS).is_file():
        return _load(folder / WEIGHTS)
    if not (folder / PICKLE).is_file():
        raise AdapterFolderError(f"'{folder}' has no {WEIGHTS}: the folder is incomplete.")
    pickle, safe = folder / PICKLE, folder / WEIGHTS
    raise AdapterFolderError(
        f"'{folder}' has its weights in {PICKLE}, a pickle, which can run code and is never loaded. If you trust it, "
        f'turn it into {WEIGHTS} first:\n  python -c "import torch, safetensors.torch as s; s.save_file({{k: v.clone() '
        f"for k, v in torch.load('{pickle}', weights_only=True).items()}}, '{safe}')\""
    )


def _load(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFolderError(f"{path} is damaged: {error}. Get the file again.") from None


def _as_loaded(config: dict[str, Any], fields: dict[str, Any], raw: Tensors) -> tuple[dict[str, Any], list[str]]:
    """Return a config as the library reads it today, for folders that older versions of it wrote."""
    notes = []
    version = re.fullmatch(r"adapters\.(\d+)\.(\d+).*", str(fields.get("version")))
    old = version is not None and (int(version[1]), int(version[2])) < (1, 1)
    r = config.get("r", LORA["r"])
    if old and config.get("architecture") == "lora" and config.get("alpha", LORA["alpha"]) != r:
        notes.append(
            f"alpha={config.get('alpha')} is read as {r}: versions of the library before 1.1 scaled by it wrongly, and "
            "later ones read it so too."
        )
        config = config | {"alpha": r}
    if fields.get("type") == "text_task" and not any("invertible" in key for key in raw):
        # adapters for tasks name invertible adapters in old folders, and have none
        config = config | {"inv_adapter": None} if "inv_adapter" in config else config
    return config, notes


def _unnamed(key: str, name: str) -> str:
    parts = key.split(".")
    for index in range(1, len(parts)):
        if parts[index] == name and parts[index - 1] in _HOLDERS:
            return ".".join(parts[:index] + parts[index + 1 :])
    return key


def _named(key: str, name: str) -> str:
    parts = key.split(".")
    at = next(index for index, part in enumerate(parts) if part in _HOLDERS)
    return ".".join([*parts[: at + 1], name, *parts[at + 1 :]])
