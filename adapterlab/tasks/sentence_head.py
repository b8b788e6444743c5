"""Backbones with a head for sentences beside that for words: which have one, what it reads and what it says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from adapterlab.errors import BackboneError

_ASKED = {"next_sentence_label", "sentence_order_label"}  # what such a model's forward takes


def check_head(model: Any) -> None:
    """Refuse a model that has no head for sentences.

    Raises:
        BackboneError: it hasn't; the message names the architectures that have one.
    """
    if not _has_head(type(model)):
        raise BackboneError(
            f"task.sentences: {type(model).__name__}, which '{model.config.model_type}' is pretrained as, has no head "
            f"for sentences. These have one: {', '.join(_able())}. Take such a backbone, or set task.sentences=none."
        )


def arranged(batch: dict[str, Any]) -> dict[str, Any]:
    """Draw for each row to train on whether its pair or the wrong one is read; held-out rows are settled already.

    The draw is made on the CPU, from torch's global generator, as that of the masks is.
    """
    if "wrong_ids" not in batch:
        return batch
    wrong = (torch.rand(len(batch["input_ids"])) < 0.5).to(batch["input_ids"].device)
    names = {"input_ids": "wrong_ids", "document": "wrong_document", "words": "wrong_words"}
    read = {name: torch.where(wrong[:, None], batch[other], batch[name]) for name, other in names.items()}
    return {**batch, **read, "attention_mask": (read["document"] >= 0).long(), "wrong": wrong.long()}


def reading(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return what the model reads beside the ids: which segment a token is of."""
    most = max(int(getattr(model.config, "type_vocab_size", 1)), 1) - 1
    return {"attention_mask": batch["attention_mask"], "token_type_ids": batch["document"].clamp(0, most)}


def sentence_logits(outputs: Any) -> Any:
    """Return a (rows, 2) tensor: that the second segment belongs behind the first, and that it doesn't."""
    return next(part for name, part in outputs.items() if name.endswith("_logits") and name != "prediction_logits")


def sentence_loss(logits: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the rows that are pairs; `wrong` is 1 where the wrong one is read, else 0."""
    total = torch.nn.functional.cross_entropy(logits.float(), wrong, reduction="sum")
    return total / (wrong >= 0).sum().clamp(min=1)


def _has_head(kind: type) -> bool:
    return bool(_ASKED & set(inspect.signature(kind.forward).parameters))  # type: ignore[attr-defined]


def _able() -> list[str]:
    """Return the architectures of transformers that have such a head, and a head for words."""
    import transformers
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES
    found = [(kind, name) for kind, name in names.items() if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES]
    return sorted(kind for kind, name in found if _has_head(getattr(transformers, name)))
