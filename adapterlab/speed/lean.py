"""Train for less: what costs nothing but computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from adapterlab.backbones import describe
from adapterlab.kernels.attention import attending
from adapterlab.sharding import is_sharded, will_be_sharded
from adapterlab.speed import precision
from adapterlab.speed.allocator import freed_memory_kept
from adapterlab.speed.cheap_dropout import cheap_dropout
from adapterlab.speed.first_token import first_token_only
from adapterlab.speed.real_tokens import real_tokens_only


@contextmanager
def lean(model: Any, *, byte_dropout: bool = True) -> Iterator[None]:
    """Train and evaluate `model` for less inside the `with` block; runs of recipes do so by themselves.

    Padding isn't computed, nor what no head reads of the last layer, each where a trial on a few tokens shows that
    answers stay the same; memory that a step frees on a CPU is kept for the next. A sharded model only drops out so.
    Copies made inside stay as they are there. Labels of padding have to be -100, and what a model says of padding
    means nothing.

    Args:
        byte_dropout: have the backbone's own dropout draw bytes, on a CPU: about a seventh less time. Rate and
            independence are the same, the masks others than torch's at the same seed. If not, they are torch's.

    Raises:
        BackboneError: this isn't a transformers model.
    """
    describe(model)
    with ExitStack() as stack:
        if precision.device() == "cpu":
            stack.enter_context(freed_memory_kept())
        if byte_dropout:
            stack.enter_context(cheap_dropout(model))
        if not (is_sharded(model) or will_be_sharded()):
            stack.enter_context(real_tokens_only(model, attending if byte_dropout else None))
            stack.enter_context(first_token_only(model))
        yield
