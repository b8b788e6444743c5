"""Classification heads: those of transformers' classes as they are, AdapterHub's own where they compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from adapterlab.converting.fields import Tensors

CONFIG, WEIGHTS, PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
_LAST = ("classifier.weight", "score.weight")
KINDS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}


@dataclass(frozen=True)
class Head:
    """A head. Tensors by path from the model."""

    model_class: str
    tensors: Tensors
    labels: dict[int, str]

    @property
    def modules(self) -> list[str]:
        """The modules beside the base model."""
        return sorted({name.split(".")[0] for name in self.tensors})

    @property
    def task(self) -> str:
        """The task as peft names it."""
        return next(task for ending, task in KINDS.items() if self.model_class.endswith(ending))

    @property
    def outputs(self) -> int:
        """How many labels there are, by the last linear."""
        last = [t for name, t in self.tensors.items() if name in _LAST or name.endswith(".out_proj.weight")]
        return len(last[0]) if last else len(self.labels)


class _Flexible(NamedTuple):
    """A head of AdapterHub's model classes that some class of transformers has too."""

    model_class: str
    layers: int
    activation: str | None
    use_pooler: bool
    names: dict[str, str]  # theirs and ours


_TWO = {"1": "classifier.dense", "4": "classifier.out_proj"}
_ONE = {"1": "classifier"}
_FLEXIBLE = {
    ("bert", "classification"): _Flexible("BertForSequenceClassification", 1, None, True, _ONE),
    ("distilbert", "classification"): _Flexible(
        "DistilBertForSequenceClassification", 2, "relu", False, {"1": "pre_classifier", "4": "classifier"}
    ),
    ("electra", "classification"): _Flexible("ElectraForSequenceClassification", 2, "gelu", False, _TWO),
    ("roberta", "classification"): _Flexible("RobertaForSequenceClassification", 2, "tanh", False, _TWO),
    ("xlm-roberta", "classification"): _Flexible("XLMRobertaForSequenceClassification", 2, "tanh", False, _TWO),
    ("bert", "tagging"): _Flexible("BertForTokenClassification", 1, None, False, _ONE),
    ("distilbert", "tagging"): _Flexible("DistilBertForTokenClassification", 1, None, False, _ONE),
    ("electra", "tagging"): _Flexible("ElectraForTokenClassification", 1, None, False, _ONE),
    ("roberta", "tagging"): _Flexible("RobertaForTokenClassification", 1, None, False, _ONE),
    ("xlm-roberta", "tagging"): _Flexible("XLMRobertaForTokenClassification", 1, None, False, _ONE),
}


def from_hub(fields: dict[str, Any], tensors: Tensors, model_type: str) -> Head | str:
    """Return the head in head_config.json and its weights, or why it is left out."""
    config = fields.get("config")
    if config is None:
        model_class = str(fields.get("model_class"))
        return Head(model_class, tensors, _labels(fields)) if is_convertible(model_class) else f"a {model_class}'s"
    kind = config.get("head_type") if isinstance(config, dict) else None
    known = _FLEXIBLE.get((model_type, str(kind)))
    if known is None:
        return f"of type '{kind}'"
    layers, pooler = config.get("layers"), bool(config.get("use_pooler"))
    activation = config.get("activation_function") if layers != 1 else None
    if (layers, activation, pooler) != (known.layers, known.activation, known.use_pooler):
        return f"of type '{kind}' with layers={layers}, activation_function={activation!r}, use_pooler={pooler}"
    renamed = {}
    for name, tensor in tensors.items():
        number, _, part = name.removeprefix(f"heads.{fields.get('name')}.").partition(".")
        if number not in known.names:
            return f"of type '{kind}' with a tensor {name}"
        renamed[f"{known.names[number]}.{part}"] = tensor
    return Head(known.model_class, renamed, _labels(config))


def is_convertible(model_class: str) -> bool:
    """Whether the head of this class of transformers is converted, as it is."""
    return model_class.endswith(tuple(KINDS))


def to_hub(head: Head) -> dict[str, Any]:
    """Return head_config.json's own fields, of a head of a transformers class."""
    labels = head.labels or {index: f"LABEL_{index}" for index in range(head.outputs)}
    return {
        "config": None,
        "label2id": {label: index for index, label in labels.items()},
        "model_class": head.model_class,
        "name": None,
        "num_labels": head.outputs,
    }


def _labels(fields: dict[str, Any]) -> dict[int, str]:
    label2id = fields.get("label2id")
    if not isinstance(label2id, dict) or not all(isinstance(index, int) for index in label2id.values()):
        return {}
    return dict(sorted((index, str(label)) for label, index in label2id.items()))
