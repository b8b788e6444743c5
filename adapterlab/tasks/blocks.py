"""Batches of packed blocks: padding, which tokens see each other, where a document's positions begin, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

_PADDING = {"input_ids": 0, "document": -1, "words": -1, "labels": -100, "fill": 0}
_PADDING |= {"wrong_ids": 0, "wrong_document": -1, "wrong_words": -1}  # of pairs: the one that is wrong


def padded(row: dict[str, Any], length: int, pad: int) -> dict[str, Any]:
    """Return a row's columns, those that a batch has, at this length."""
    padding = _PADDING | {"input_ids": pad, "wrong_ids": pad}
    return {name: [*row[name], *[value] * (length - len(row[name]))] for name, value in padding.items() if name in row}


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Make a batch, each column padded to its longest."""
    longest = max(len(row[name]) for row in rows for name in ("input_ids", "wrong_ids") if name in row)
    full = [padded(row, longest, pad) for row in rows]
    batch = {name: torch.tensor([row[name] for row in full]) for name in full[0]}
    batch["attention_mask"] = (batch["document"] >= 0).long()
    if "wrong" in rows[0]:
        batch["wrong"] = torch.tensor([row["wrong"] for row in rows])
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


def losses_by_row(
    logits: torch.Tensor, labels: torch.Tensor, row: torch.Tensor, rows: int, pieces: Mapping[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's summed cross entropy and the number of tokens in it.

    Args:
        logits: (tokens, vocabulary).
        labels: (tokens,).
        row: (tokens,), which row each token is of.
        rows: how many there are.
        pieces: tokens that count for several. So losses stay comparable with those before there were such.
    """
    each = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    counted = torch.ones_like(each)
    for token, count in pieces.items():
        counted = counted.masked_fill(labels == token, float(count))
    loss, number = (torch.zeros(rows, device=logits.device) for _ in range(2))
    return loss.index_add(0, row, each), number.index_add(0, row, counted)
