"""One adapter on disk: a PEFT folder (adapter_config.json, adapter_model.safetensors) plus our adapterlab.json."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from adapterlab import __version__, token_files
from adapterlab.errors import AdapterFolderError
from adapterlab.guests import Guest, Guests, need_guests
from adapterlab.heads import labels_of
from adapterlab.sharding import is_sharded, whole

CONFIG, WEIGHTS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "adapterlab.json"
FORMAT = 1  # of adapterlab.json
BARE = ("prompt_embeddings",)  # keys that peft writes without a prefix

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}


@dataclass(frozen=True)
class AdapterFiles:
    """What a folder holds."""

    folder: Path
    fields: dict[str, Any]
    extra: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def peft_type(self) -> str:
        """The method, as adapter_config.json names it."""
        return str(self.fields.get("peft_type"))

    @property
    def labels(self) -> dict[int, str]:
        """Label names by index.

        Raises:
            AdapterFolderError: they aren't a mapping from numbers to names.
        """
        try:
            return {int(index): str(label) for index, label in self.extra.get("labels", {}).items()}
        except (AttributeError, TypeError, ValueError):
            raise AdapterFolderError(f"{self.folder / EXTRA}: labels must map numbers to names.") from None

    @property
    def problem_type(self) -> str | None:
        """What the labels are to transformers: its loss, and what its pipelines make of logits.

        Raises:
            AdapterFolderError: transformers has no such problem type.
        """
        given = self.extra.get("problem_type")
        if given not in (None, *_PROBLEM_TYPES):
            known = ", ".join(_PROBLEM_TYPES)
            raise AdapterFolderError(f"{self.folder / EXTRA}: problem_type is {given!r}, and must be one of {known}.")
        return given


def save(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write one adapter, its head and labels as a PEFT folder that plain peft can load; safetensors only.

    Where a model is sharded among processes (FSDP), all of them call this, and the first one writes.

    Args:
        model: a model with an adapter.
        folder: made if missing; other files in it stay.
        name: which adapter; the only one, or the only active one, if left out.

    Returns:
        The folder.

    Raises:
        AdapterError: no adapter, no such adapter, or several to choose from.
        AdapterFolderError: `folder` is a file.
    """
    guests = need_guests(model)
    guest = guests.pick(name, "save")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise AdapterFolderError(f"'{folder}' is a file; give a folder to save the adapter in.")
    with whole(model):
        prefix = guest.method.key_prefix
        bare = (*BARE, "base_model.")  # the latter: what all of a peft tuner's layers share
        tensors = adapter_tensors(model, guest)
        # clones: a head may hold one tensor under two names, which a file can't
        prefixed = {k if k.startswith(bare) else prefix + k: t.cpu().clone().contiguous() for k, t in tensors.items()}
        fields = peft_fields(model, guests, guest)
    if is_sharded(model) and distributed.get_rank():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tmp-adapter-", dir=folder))
    try:
        save_file(prefixed, staging / WEIGHTS, metadata={"format": "pt"})
        _write_json(staging / EXTRA, _extra(model, guests, guest))
        _write_json(staging / CONFIG, fields)
        umask = os.umask(0)
        os.umask(umask)
        for file in (WEIGHTS, EXTRA, CONFIG):  # the config last: a folder with one is whole
            (staging / file).chmod(0o666 & ~umask)
            (staging / file).replace(folder / file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def read(source: str | Path) -> AdapterFiles:
    """Read an adapter folder, or the adapter in a run folder.

    Raises:
        AdapterFolderError: it isn't one, or a file in it can't be read.
    """
    folder = Path(source)
    if not (folder / CONFIG).is_file() and (folder / "adapter" / CONFIG).is_file():
        folder = folder / "adapter"
    if not folder.is_dir():
        raise AdapterFolderError(f"'{source}' is no folder. Give an adapter folder, a run folder or a Hub id.")
    if not (folder / CONFIG).is_file():
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise AdapterFolderError(
            f"'{source}' is no adapter folder: it has no {CONFIG} (it holds {present}). "
            "Give the folder that adapterlab.save or peft wrote, or a finished run."
        )
    if not (folder / WEIGHTS).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        hint = (
            "Its adapter_model.bin is a pickle, which can run code and is never loaded; save it again with a "
            "current peft." if pickle else "The folder is incomplete."
        )  # fmt: skip
        raise AdapterFolderError(f"'{folder}' has no {WEIGHTS}. {hint}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AdapterFolderError(f"{folder / WEIGHTS} is damaged: {error}. Get the file again.") from None
    extra = read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    if extra.get("format", FORMAT) != FORMAT:
        raise AdapterFolderError(
            f"{folder / EXTRA} is of format {extra['format']!r}, and this adapterlab reads {FORMAT}: upgrade it."
        )
    return AdapterFiles(folder, read_json(folder / CONFIG), extra, tensors)


def adapter_tensors(model: nn.Module, guest: Guest) -> dict[str, torch.Tensor]:
    """Return what an adapter's file holds: the method's tensors, new tokens' and the heads', keyed by path."""
    tensors = guest.method.state(model, guest.name, guest.config)
    tensors |= {key: rows.detach() for key, rows in token_files.saved(model, guest.name).items()}
    for path, head in guest.heads.items():
        tensors |= {f"{path}.{key}": tensor.detach() for key, tensor in head.state_dict().items()}
    return tensors


def peft_fields(model: nn.Module, guests: Guests, guest: Guest) -> dict[str, Any]:
    """Return what an adapter's adapter_config.json holds."""
    config: Any = model.config
    fields = guest.method.to_peft(model, guests.backbone, guest.name, guest.config)
    task = next((t for ending, t in _TASK_TYPES.items() if type(model).__name__.endswith(ending)), None)
    if task is None and model.base_model is model:
        task = "FEATURE_EXTRACTION"  # without a type peft ignores prompts
    fields |= {
        "peft_type": guest.method.peft_type,
        "task_type": task,
        "base_model_name_or_path": getattr(config, "_name_or_path", "") or None,
        "inference_mode": True,
    }
    fields |= token_files.for_peft(model, guest.name, fields)
    if guest.heads:
        fields["modules_to_save"] = sorted(guest.heads)
    return {key: value for key, value in sorted(fields.items()) if key != "auto_mapping"}


def _extra(model: nn.Module, guests: Guests, guest: Guest) -> dict[str, Any]:
    heading, config = guest is guests.heading(), cast(Any, model.config)
    labels = labels_of(model) if heading else guest.labels
    problem_type = getattr(config, "problem_type", None) if heading else guest.problem_type
    return {
        "format": FORMAT,
        "adapterlab": __version__,
        "method": guest.method_name,
        "options": guest.config.model_dump(mode="json"),
        "architecture": type(model).__name__.removeprefix("FSDP"),  # which torch puts before it
        "fingerprint": guests.fingerprint,
        "heads": sorted(guest.heads),
        "labels": {str(index): label for index, label in labels.items()} if guest.heads else {},
        "problem_type": problem_type if guest.heads else None,
        **token_files.to_json(model, guest.name),
        **guest.about,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterFolderError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFolderError(f"{path} can't be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise AdapterFolderError(f"{path} must hold a JSON object, and holds a {type(content).__name__}.")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str, sort_keys=False) + "\n", encoding="utf-8")
