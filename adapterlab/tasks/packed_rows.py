"""Several short rows in one window: which go together, and whether a model keeps them apart."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fill(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Return which rows share a window: the longest first, each into the fullest window that has room for it."""
    windows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # sorted: the room left in a window, and its number
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(rooms, (lengths[row], -1))
        if place == len(rooms):
            windows.append([])
            room, number = window, len(windows) - 1
        else:
            room, number = rooms.pop(place)
        windows[number].append(row)
        insort(rooms, (room - lengths[row], number))
    return windows


def keeps_apart(model: Any) -> bool:
    """Say whether rows packed behind each other, their positions beginning anew, give the logits they give alone.

    transformers reads the borders off the positions when there is neither mask nor cache. Not every model does; and
    adapters that put virtual tokens in front of a window show them to its first row only.
    """
    import torch

    ids = _few_ids(model, 9)
    places = torch.tensor([[*range(5), *range(4)]], device=ids.device)
    alone = torch.cat([_logits(model, ids[:, :5]), _logits(model, ids[:, 5:])])
    return _same(_logits(model, ids, position_ids=places), alone, model)


def looks_back_only(model: Any) -> bool:
    """Say whether a token's logits are untouched by the tokens that follow it."""
    ids = _few_ids(model, 6)
    return _same(_logits(model, ids)[:3], _logits(model, ids[:, :3]), model)


def _few_ids(model: Any, count: int) -> torch.Tensor:
    import torch

    words = model.get_input_embeddings().weight
    return torch.randint(len(words), (1, count), generator=torch.Generator().manual_seed(1)).to(words.device)


def _logits(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    import torch

    from adapterlab.backbones import at_rest

    with at_rest(model), torch.inference_mode():
        return model(input_ids=ids, use_cache=False, **inputs).logits[0]


def _same(some: torch.Tensor, others: torch.Tensor, model: Any) -> bool:
    """Say whether logits are equal but for rounding; int8 rounds each token by what else is in the batch."""
    import torch

    from adapterlab.kernels.int8 import is_quantized

    if is_quantized(model):
        return bool((some - others).float().norm() <= 0.1 * others.float().norm())
    off = (some.float() - others.float()).abs().max()
    return bool(off <= others.float().std() * torch.finfo(others.dtype).eps ** 0.5)
