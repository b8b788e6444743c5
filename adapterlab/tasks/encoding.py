"""Encoding: what a task makes of rows, as `data.workers` and `data.cache` say; and what is to be told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterlab.data.preparing import encode_rows
from adapterlab.data.tokenizing import identity

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.tasks.base import Task

TOLD = "_told"  # the column of counts


def encode_for(
    task: Task,
    dataset: Dataset,
    function: Callable[..., dict[str, list[Any]]],
    tokenizer: Any,
    name: str,
    *depends: Any,
    with_indices: bool = True,
) -> Dataset:
    """Return what a function makes of batches of rows (and of their places), as the task's preparation says.

    Args:
        function: may run in other processes, or, where the cache has its outcome, not at all: so it counts nothing for
            notes outside, but gives a column `TOLD`. It depends on nothing but the batch, the task's state, the
            tokenizer and `depends`, and holds no rows.
        name: the split's.
        depends: as JSON can hold it.
    """
    return encode_rows(
        dataset,
        function,
        description=f"Tokenising {name}",
        fingerprint=[task.state(), identity(tokenizer), *depends],
        workers=task.preparation.workers,
        cache=task.preparation.cache,
        with_indices=with_indices,
    )


def take_told(encoded: Dataset, names: Sequence[str]) -> tuple[Dataset, dict[str, np.ndarray[Any, Any]]]:
    """Take the counts off encoded rows; return these under their names, a number a row."""
    counts = np.asarray(encoded.with_format("numpy")[TOLD][:], dtype=np.int64).reshape(-1, len(names))
    return encoded.remove_columns(TOLD), dict(zip(names, counts.T, strict=True))
