"""Train for less: what costs nothing but computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from adapterlab.sharding import is_sharded
from adapterlab.training import precision
from adapterlab.training.allocator import freed_memory_kept
from adapterlab.training.first_token import first_token_only


@contextmanager
def lean(model: Any) -> Iterator[None]:
    """Keep freed memory, and leave out what nobody reads of the last layer, inside the `with` block."""
    memory = freed_memory_kept() if precision.device() == "cpu" else nullcontext()
    with memory, nullcontext() if is_sharded(model) else first_token_only(model):
        yield
