"""Which tokens a masked language model has to find, and what it offers for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

OFFERED = 5  # so many tokens are offered for each mask that a text has
_CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x3040, 0x30FF), (0xAC00, 0xD7AF))


def words_of(encoding: Any, text: str) -> list[int]:
    """Return the number of the word that each token of a fast tokenizer's encoding is of; -1 for special tokens.

    Chinese, Japanese and Korean characters are words of their own, whatever the tokenizer takes for one.
    """
    numbers: dict[tuple[int, int], int] = {}
    found = []
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word is None:
            found.append(-1)
            continue
        alone = next((place for place in range(start, end) if not text[place].isspace()), start)
        key = (word, alone if alone < len(text) and _is_cjk(text[alone]) else -1)
        found.append(numbers.setdefault(key, len(numbers)))
    return found


def mask(
    ids: torch.Tensor,
    words: torch.Tensor,
    *,
    share: float,
    mask_id: int,
    others: Sequence[int],
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide a share of the words: 80 % of their tokens behind the mask, 10 % behind another token, 10 % not at all.

    The draw is made on the CPU, from torch's global generator if none is given: so a resumed run draws alike.

    Args:
        ids: (batch, length).
        words: (batch, length), each token's word, -1 for those that are never masked. Equal numbers in a row are one.
        share: of the words.
        mask_id: the mask token.
        others: the ids that a random token is drawn from.

    Returns:
        The ids to read, and labels: the true id where there is something to find, -100 elsewhere.
    """
    shape = tuple(ids.shape)
    count = int(words.max()) + 1 if words.numel() else 0
    hidden = torch.rand((shape[0], max(count, 1)), generator=generator) < share
    fate = torch.rand(shape, generator=generator)
    pool = torch.tensor(others)
    drawn = pool[torch.randint(len(pool), shape, generator=generator)].to(ids.device)
    chosen = hidden.to(ids.device).gather(1, words.clamp(min=0)) & (words >= 0)
    fate = fate.to(ids.device)
    labels = ids.masked_fill(~chosen, -100)
    read = ids.masked_fill(chosen & (fate < 0.8), mask_id)
    return torch.where(chosen & (fate >= 0.9), drawn, read), labels


class Pick:
    """Forward hook of the base model: its hidden states leave without the positions that nobody asks for."""

    def __init__(self, wanted: torch.Tensor) -> None:
        self.wanted = wanted

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        picked = output[0][self.wanted][None]
        if isinstance(output, tuple):
            return (picked, *output[1:])
        output.last_hidden_state = picked
        return output


def offers(logits: torch.Tensor, rows: torch.Tensor, asked: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Return (rows, masks, tokens) of the tokens offered for each given mask, padded with -100, and how probable."""
    best = logits[asked].float().softmax(-1).topk(OFFERED)
    owners = rows[asked].tolist()
    most = max((owners.count(row) for row in set(owners)), default=0)
    tokens, scores = (torch.full((count, most, OFFERED), -100.0, device=logits.device) for _ in range(2))
    for number, row in enumerate(owners):
        place = owners[:number].count(row)
        tokens[row, place], scores[row, place] = best.indices[number].float(), best.values[number]
    return {"tokens": tokens, "scores": scores}


def _is_cjk(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in _CJK)
