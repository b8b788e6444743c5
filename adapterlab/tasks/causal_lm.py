"""Causal language modelling of raw text: GPT's own training, continued."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from adapterlab.errors import BackboneError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.corpus import CorpusTask
from adapterlab.tasks.exchange import Predictions
from adapterlab.tasks.metrics_language import perplexity
from adapterlab.tasks.packing import Block, Pieces


@register_task("causal_lm", "clm")
class CausalLM(CorpusTask):
    """Learns to find the next token of raw text."""

    summary = "raw text, for GPT and its kin: the next token is found (continued pretraining)"
    auto_class = "AutoModelForCausalLM"
    mask_function = "create_causal_mask"

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Refuse an encoder: its tokens see those that they have to find."""
        if getattr(model.config, "is_decoder", True) is False and hasattr(
            sys.modules[type(model.base_model).__module__], "create_bidirectional_mask"
        ):
            raise BackboneError(
                f"this {type(model).__name__} is of BERT's kind: each token sees the next ones, so there is nothing to "
                "find. Use task.type=masked_lm."
            )
        super().prepare(model, tokenizer)

    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Nothing: what begins and ends a document is part of it, and a document may go on in the next block."""
        return [], []

    def pieces(self, texts: list[str], tokenizer: Any) -> list[Pieces]:
        """Tokenise; each document ends in the end-of-text token."""
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        found = []
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            whole = ids if ids[-1:] == end else [*ids, *end]
            found.append(Pieces(whole, [-1] * len(whole)))
        return found

    def columns_of(self, blocks: Iterable[Block], tokenizer: Any, name: str) -> Iterator[dict[str, Any]]:
        """Each token is to be found from those before it; a document's first one, in a block, from nothing."""
        for block in blocks:
            pairs = zip(block.document, [None, *block.document], strict=False)
            begins = [index == 0 or (self.apart and one != before) for index, (one, before) in enumerate(pairs)]
            labels = [-100 if begin else index for begin, index in zip(begins, block.input_ids, strict=True)]
            yield {"input_ids": block.input_ids, "document": block.document, "labels": labels}

    def reading(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Where documents are kept apart, positions begin anew: transformers makes the mask from them.

        There is no mask for padding, which stands at the end, where nothing that counts can see it, and no cache:
        with either, transformers wouldn't look for documents in the positions.
        """
        if not self.apart:
            return {**super().reading(model, batch), "use_cache": False}
        from adapterlab.tasks.blocks import positions

        return {"position_ids": positions(batch["document"]), "use_cache": False}

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss of the next tokens."""
        from adapterlab.tasks.blocks import losses_by_row

        ids, labels = batch["input_ids"], batch["labels"][:, 1:]
        logits = model(input_ids=ids, **self.reading(model, batch)).logits[:, :-1]
        known = labels != -100
        row = known.nonzero()[:, 0]
        losses, counts = losses_by_row(logits[known], labels[known], row, len(ids), self.pieces_of)
        return losses.sum() / counts.sum().clamp(min=1), (losses, counts)

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep each row's loss and its number of tokens."""
        return outputs

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Say how probable a text is."""
        owners = list(seen.encoded["_row"])
        answers = []
        for row in range(len(seen.rows)):
            losses, counts = (
                [part[place] for place, owner in enumerate(owners) if owner == row] for part in seen.outputs
            )
            answers.append({"perplexity": perplexity(losses, counts)})
        return answers
