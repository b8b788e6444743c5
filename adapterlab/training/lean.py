"""Train for less: what costs nothing but computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from adapterlab.backbones import describe
from adapterlab.sharding import is_sharded
from adapterlab.training import precision
from adapterlab.training.allocator import freed_memory_kept
from adapterlab.training.cheap_dropout import cheap_dropout
from adapterlab.training.first_token import first_token_only
from adapterlab.training.real_tokens import real_tokens_only


@contextmanager
def lean(model: Any) -> Iterator[None]:
    """Train and evaluate `model` for less inside the `with` block; runs of recipes do so by themselves.

    Padding isn't computed, nor what no head reads of the last layer, each where a trial on a few tokens shows that
    answers stay the same. On a CPU dropout draws bytes, and memory that a step frees is kept for the next. Of a sharded
    model all tokens are computed.

    Raises:
        BackboneError: this isn't a transformers model.
    """
    describe(model)
    with ExitStack() as stack:
        if precision.device() == "cpu":
            stack.enter_context(freed_memory_kept())
            stack.enter_context(cheap_dropout(model))
        if not is_sharded(model):
            stack.enter_context(real_tokens_only(model))
            stack.enter_context(first_token_only(model))
        yield
