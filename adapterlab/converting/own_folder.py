"""An adapter folder of ours, or of peft: read for converting, and the files of one to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adapterlab import __version__
from adapterlab.adapter_folder import BARE, CONFIG, EXTRA, FORMAT, WEIGHTS, AdapterFiles
from adapterlab.adapters import METHODS, MethodConfig, parse_config
from adapterlab.converting import prefix
from adapterlab.converting.fields import Tensors, refusal
from adapterlab.converting.heads import Head, is_convertible
from adapterlab.converting.names import Architecture
from adapterlab.errors import AdapterFolderError, AdapterLabError, did_you_mean

METHOD_TYPES = {"bottleneck": "BOTTLENECK", "lora": "LORA", "prefix": "PREFIX_TUNING"}
RECORD = "adapterhub"  # what adapterlab.json keeps of the folder that an adapter came from


@dataclass(frozen=True)
class OwnFolder:
    """What such a folder holds. Tensors' names are from the base model."""

    method: str
    config: Any
    architecture: Architecture
    model_class: str
    model_name: str | None
    hidden_size: int | None
    tensors: Tensors
    head: Head | None = None
    layers: int | None = None  # how many the backbone has, if the folder says
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def headed(self) -> bool:
        """Whether the adapter is for a model with a head."""
        return is_headed(self.model_class)

    def files(self) -> dict[str, dict[str, Any] | Tensors]:
        """Return the files to write: JSON objects and tensors by name."""
        head = self.head
        paths = {self.architecture.with_base(name, self.headed): tensor for name, tensor in self.tensors.items()}
        if self.method == "prefix":
            paths = dict(self.tensors)
        paths |= head.tensors if head else {}
        mark = METHODS.get(self.method).key_prefix
        return {
            WEIGHTS: {name if name in BARE else mark + name: tensor for name, tensor in paths.items()},
            EXTRA: {
                "format": FORMAT,
                "adapterlab": __version__,
                "method": self.method,
                "options": self.config.model_dump(mode="json"),
                "architecture": self.model_class or None,
                "heads": head.modules if head else [],
                "labels": {str(index): label for index, label in head.labels.items()} if head else {},
                RECORD: self.record,
            },
            CONFIG: dict(sorted(self._peft_fields().items())),
        }

    def _peft_fields(self) -> dict[str, Any]:
        if self.method == "lora":
            fields = METHODS.get("lora").peft_config(self.config).to_dict()  # type: ignore[attr-defined]
            fields |= {
                "target_modules": self.config.target_modules,
                "rank_pattern": self.config.rank_pattern,
                "alpha_pattern": self.config.alpha_pattern,
                "fan_in_fan_out": self.architecture.model_type == "gpt2",  # its linears are Conv1D
            }
            fields = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
        elif self.method == "prefix":
            fields = prefix.peft_fields(self.config, self.hidden_size)
        else:
            fields = self.config.model_dump(exclude={"modules_to_save"}, exclude_none=True)
        fields.pop("auto_mapping", None)
        fields |= {
            "peft_type": METHOD_TYPES[self.method],
            "task_type": self.head.task if self.head else None,  # with a task peft asks for a head
            "base_model_name_or_path": self.model_name,
            "inference_mode": True,
        }
        return fields | ({"modules_to_save": self.head.modules} if self.head else {})


def read(files: AdapterFiles, model_class: str | None) -> OwnFolder:
    """Take apart what `adapter_folder.read` found.

    Args:
        files: the folder.
        model_class: the model's class, where the folder doesn't say; it does if adapterlab wrote it.

    Raises:
        AdapterFolderError: another method, or nothing says which architecture it is for.
    """
    named = files.extra.get("method")
    method = named or next((name for name, kind in METHOD_TYPES.items() if kind == files.peft_type), files.peft_type)
    if method not in METHOD_TYPES:
        raise refusal(
            files.folder,
            [f"method '{method}' has no counterpart in AdapterHub. Converted are: bottleneck, lora, prefix."],
        )
    record = files.extra.get(RECORD) or {}
    finger = files.extra.get("fingerprint") or {}
    told = model_class or files.extra.get("architecture") or record.get("model_class")
    model_type = record.get("model_type") or finger.get("model_type") or (told and type_of(str(told)))
    if not model_type:
        raise AdapterFolderError(
            f"'{files.folder}' doesn't say which model it is for. Name its class: "
            "convert(..., model_class='BertForSequenceClassification'), or --model-class."
        )
    architecture = Architecture(str(model_type), files.folder)
    mark = METHODS.get(method).key_prefix
    tensors = {name.removeprefix(mark): tensor for name, tensor in files.tensors.items()}
    beside = _beside(files, architecture, tensors)
    own = {architecture.without_base(name): t for name, t in tensors.items() if name not in beside}
    head, notes = None, []
    if beside and is_convertible(str(told)):
        head = Head(str(told), beside, files.labels)
    elif beside:
        notes.append(f"the head, a {told or 'model of a class that nothing names'}'s, is left out: heads for "
                     "classification are converted.")  # fmt: skip
    hidden = record.get("hidden_size") or finger.get("hidden_size") or files.fields.get("encoder_hidden_size")
    return OwnFolder(
        method,
        _config(files, method, own),
        architecture,
        str(told or ""),
        files.fields.get("base_model_name_or_path"),
        hidden,
        own,
        head,
        finger.get("layers"),
        record,
        tuple(notes),
    )


def is_headed(model_class: str) -> bool:
    """Whether a model class has something beside its base model (AdapterHub's own classes have)."""
    return not model_class.endswith("Model") or model_class.endswith(("AdapterModel", "HeadModel", "HeadsModel"))


def type_of(model_class: str) -> str:
    """Return the model type of a transformers class.

    Raises:
        AdapterFolderError: there is no such class.
    """
    import transformers

    config = getattr(getattr(transformers, model_class, None), "config_class", None)
    if config is None:
        known = [name for name in dir(transformers) if name.endswith("Model") or "For" in name]
        raise AdapterFolderError(f"transformers has no model class '{model_class}'.{did_you_mean(model_class, known)}")
    return str(config.model_type)


def _config(files: AdapterFiles, method: str, tensors: Tensors) -> MethodConfig:
    """Read the options as `load` does."""
    try:
        options = METHODS.get(method).from_peft(files.fields, tensors)
        own = files.extra.get("options")
        own = {key: value for key, value in own.items() if value is not None} if isinstance(own, dict) else {}
        return parse_config(method, {key: value for key, value in (own | options).items() if key != "modules_to_save"})
    except KeyError as error:
        raise AdapterFolderError(f"{files.folder / CONFIG} has no field {error}.") from None
    except AdapterLabError as error:
        raise AdapterFolderError(f"{files.folder / CONFIG}: {error}") from None


def _beside(files: AdapterFiles, architecture: Architecture, tensors: Tensors) -> Tensors:
    """Return the tensors of modules beside the base model, which were trained in full.

    Raises:
        AdapterFolderError: modules of the base model were, too.
    """
    modules = list(files.extra.get("heads") or files.fields.get("modules_to_save") or [])
    inside = [module for module in modules if module.startswith(architecture.base + ".")]
    if inside:
        raise refusal(
            files.folder, [f"modules_to_save={inside}: AdapterHub saves adapter and head, no module of the backbone."]
        )
    return {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in modules}
