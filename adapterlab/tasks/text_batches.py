"""Rows of token ids: made of texts, padded to batches, and their losses token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = -100  # pads labels and what was generated


@dataclass(frozen=True)
class TokenLosses:
    """What `forward` gives: each row's summed loss and number of tokens, (rows, 2), and what they were computed of."""

    rows: Any
    logits: Any = None
    labels: Any = None


def token_losses(logits: Any, labels: Any, items: Any) -> tuple[Any, TokenLosses]:
    """Return the loss per token, and each row's.

    Args:
        logits: (rows, tokens, words).
        labels: (rows, tokens); -100 is not counted.
        items: what to divide by; None divides by the tokens here.
    """
    import torch
    import torch.nn.functional as F

    each = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=NOTHING, reduction="none")
    rows = torch.stack([each.sum(1), (labels != NOTHING).sum(1).float()], dim=1)
    total, tokens = rows.sum(0)
    return total / (tokens.clamp(min=1) if items is None else items), TokenLosses(rows, logits, labels)


def no_losses(batch: dict[str, Any]) -> tuple[Any, TokenLosses]:
    """Return what `token_losses` would, of rows that have nothing to learn."""
    rows = batch["labels"].new_zeros((len(batch["labels"]), 2)).float()
    return rows.sum(), TokenLosses(rows)


def decoder_inputs(model: Any, labels: Any) -> Any:
    """Return what an encoder-decoder's decoder reads while it learns to write labels: they, one place later."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    read = labels.new_full(labels.shape, model.config.decoder_start_token_id)  # M2M100 and NLLB have no such method
    read[:, 1:] = labels[:, :-1]
    return read.masked_fill(read == NOTHING, model.config.pad_token_id)


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Any:
    """Return rows of numbers as one tensor, padded to the longest."""
    import torch

    longest = max(map(len, rows))
    pads = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)])
