"""Vectors of texts: from hidden states, what is learned of them, and how well they find each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

_ROWS = 512  # so many rows of cosines at once


def pool(hidden: Any, mask: Any, how: str) -> Any:
    """Return a vector of unit length, in fp32, for each text.

    Args:
        hidden: last hidden states, (texts, tokens, hidden); virtual tokens in front are left out.
        mask: 1 for real tokens, (texts, tokens).
        how: "mean" of the real tokens, or "cls", the first of them.
    """
    import torch

    hidden = hidden[:, -mask.shape[1] :].float()
    if how == "cls":
        vectors = hidden[torch.arange(len(mask), device=mask.device), mask.argmax(dim=1)]
    else:
        weights = mask.unsqueeze(-1).float()
        vectors = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def contrastive(vectors: Any, rows: Any, kinds: Any, same: Any, temperature: float) -> Any:
    """Return the InfoNCE loss of each row's text (kind 0) finding its partner (1) among partners and negatives (2).

    A candidate with the text of a row's own partner, or that is the partner of an equal text, isn't held against it.

    Args:
        vectors: of unit length, (texts, hidden).
        rows: the row of each text, (texts,).
        kinds: what each text is in its row, (texts,).
        same: a number for each text; equal texts have equal ones.
        temperature: divides the cosines.
    """
    import torch

    asking, asked = (kinds == 0).nonzero()[:, 0], (kinds > 0).nonzero()[:, 0]
    own = (rows[asking, None] == rows[asked]) & (kinds[asked] == 1)
    cosines = vectors[asking] @ vectors[asked].T / temperature
    partner = asked[own.int().argmax(dim=1)]
    partners = same[partner]  # (asking,)
    asks_alike = same[asking, None] == same[asking]  # of two rows, whether their texts are equal
    known = (asks_alike[:, :, None] & (partners[None, :, None] == same[asked][None, None, :])).any(dim=1)
    return torch.nn.functional.cross_entropy(cosines.masked_fill(known & ~own, float("-inf")), own.int().argmax(dim=1))


def partner_ranks(
    texts: Sequence[str], partners: Sequence[str], vectors: Any, negatives: Sequence[str | None] = ()
) -> list[int]:
    """Return the rank of each row's partner among all different partners and negatives, the nearest being 1.

    Other partners of an equal text are left out; what is as near as the partner counts as nearer, so that a model
    that gives every text the same vector finds nothing.

    Args:
        vectors: of unit length, (rows, 2 or 3, hidden): of text, partner and negative.
    """
    place: dict[str, int] = {}
    found: list[Any] = []
    for number, column in enumerate((partners, negatives), start=1):
        for row, text in enumerate(column):
            if text is not None and text not in place:
                place[text] = len(found)
                found.append(vectors[row, number])
    candidates = np.stack(found)
    others = defaultdict(set)
    for text, partner in zip(texts, partners, strict=True):
        others[text].add(place[partner])
    ranks: list[int] = []
    for start in range(0, len(texts), _ROWS):
        cosines = vectors[start : start + _ROWS, 0] @ candidates.T
        for row, line in enumerate(cosines, start=start):
            own = place[partners[row]]
            nearer = line >= line[own]
            nearer[[other for other in others[texts[row]] if other != own]] = False
            ranks.append(int(nearer.sum()))
    return ranks
