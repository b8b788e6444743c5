"""Batches of packed blocks: padding, which tokens see each other, where a document's positions begin, losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_PADDING = {"input_ids": 0, "document": -1, "words": -1, "labels": -100, "fill": 0}


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Make a batch, each column padded to its longest."""
    longest = max(len(row["input_ids"]) for row in rows)
    padding = _PADDING | {"input_ids": pad}
    batch = {
        name: torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in rows])
        for name, value in padding.items()
        if name in rows[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


def positions(document: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Return each token's place in its document.

    Args:
        document: (batch, length), the number of each token's document.
        first: the place that a document begins at.
    """
    places = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return places - places.where(begins, 0).cummax(dim=1).values + first


def apart(document: torch.Tensor, model: Any) -> torch.Tensor:
    """Return a (batch, 1, length, length) mask that lets a token see its own document, in both directions.

    It is of the kind that the model's attention takes: added to the scores for "eager", else boolean.

    Args:
        document: (batch, length), the number of each token's document.
        model: the model that reads it.
    """
    same = document[:, None, :, None] == document[:, None, None, :]
    if model.config._attn_implementation != "eager":
        return same
    zero = torch.zeros((), dtype=model.dtype, device=document.device)
    return zero.where(same, torch.finfo(model.dtype).min)


def losses_by_row(logits: torch.Tensor, labels: torch.Tensor, row: torch.Tensor, rows: int) -> tuple[Any, Any]:
    """Return each row's summed cross entropy and the number of tokens in it.

    Args:
        logits: (tokens, vocabulary).
        labels: (tokens,).
        row: (tokens,), which row each token is of.
        rows: how many there are.
    """
    each = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    loss, count = (torch.zeros(rows, device=logits.device) for _ in range(2))
    return loss.index_add(0, row, each), count.index_add(0, row, torch.ones_like(each))
