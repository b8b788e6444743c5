"""Features of a frozen backbone: the mean of its last hidden states over real tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adapterlab.backbones import at_rest
from adapterlab.sharding import callable_inside


def frozen_features(model: Any, rows: Any, collate: Callable[..., Any], batch_size: int = 64) -> Any:
    """Return a (rows, hidden) array: the masked mean of the base model's last hidden states.

    Args:
        model: a transformers model with a head; only its base model runs.
        rows: encoded rows, as `Task.encode` gives them.
        collate: makes a padded batch of rows.
    """
    rows = rows.remove_columns([name for name in rows.column_names if name.startswith("_")])
    device = next(model.parameters()).device
    order = np.argsort([len(ids) for ids in rows["input_ids"]])[::-1]
    result: Any = None
    with at_rest(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[int(index)] for index in chosen])
            batch = {key: tensor.to(device) for key, tensor in batch.items() if key != "labels"}
            with callable_inside(model), torch.inference_mode():
                hidden = model.base_model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).float()
            mean = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
            if result is None:
                result = np.empty((len(order), mean.shape[1]), dtype=np.float32)
            result[chosen] = mean
    return result
