"""Masked words: which are hidden in blocks of raw text, the loss of finding them, and what is offered for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adapterlab.errors import BackboneError
from adapterlab.tasks.corpus import ANSWERS, CorpusOptions, CorpusTask
from adapterlab.tasks.exchange import Predictions
from adapterlab.tasks.metrics_language import perplexity
from adapterlab.tasks.packing import Block, Pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class MaskedWordsOptions(CorpusOptions):
    """Options of the masks."""

    mask_share: float = Field(0.15, gt=0, lt=1, description="Share of the words that have to be found.")
    whole_words: bool = Field(True, description="Mask all pieces of a word, or each piece by itself.")


class MaskedWords(CorpusTask):
    """Learns to find masked words. In training each pass masks others; held-out text is always masked alike."""

    auto_class = "AutoModelForMaskedLM"
    redraws = True
    mask_function = "create_bidirectional_mask"
    Options: ClassVar[type[MaskedWordsOptions]] = MaskedWordsOptions

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Refuse a tokenizer that has no mask token."""
        if tokenizer.mask_token_id is None:
            raise BackboneError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no mask token, so nothing can be masked. A GPT-type "
                "model learns from raw text with task.type=causal_lm; for a BERT-type one take the tokenizer that it "
                "was pretrained with."
            )
        super().prepare(model, tokenizer)
        self._tokenizer = tokenizer
        self._mask_id = int(tokenizer.mask_token_id)
        self._others = _ordinary(tokenizer)
        if self.options.whole_words and not tokenizer.is_fast:
            self.note("This tokenizer can't say which pieces make a word: each is masked by itself.")

    def _keeps_apart(self, model: Any) -> bool:
        layers = getattr(model.config, "layer_types", None) or []  # sliding ones need a mask of their own
        return super()._keeps_apart(model) and set(layers) <= {"full_attention"}

    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Each piece stands between what the tokenizer puts around a text."""
        inner = tokenizer.encode("a", add_special_tokens=False)
        whole = tokenizer.encode("a")
        begin = next((place for place in range(len(whole)) if whole[place : place + len(inner)] == inner), 0)
        return whole[:begin], whole[begin + len(inner) :]

    def pieces(self, texts: list[str], tokenizer: Any) -> list[Pieces]:
        """Tokenise, and tell which tokens make a word."""
        from adapterlab.tasks.masking import words_of

        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        kept = set(tokenizer.all_special_ids)  # a text may hold some: nobody shall guess [UNK]
        found = []
        for number, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            whole = self.options.whole_words and encoded.encodings
            words = words_of(encoded.encodings[number], text) if whole else list(range(len(ids)))
            found.append(Pieces(ids, [-1 if index in kept else word for index, word in zip(ids, words, strict=True)]))
        return found

    def columns_of(self, blocks: Iterable[Block], tokenizer: Any, name: str) -> Iterator[dict[str, Any]]:
        """Blocks to train on are masked when they are read, all others here, with a seed of their own."""
        import torch

        generator, others = torch.Generator().manual_seed(0), _ordinary(tokenizer)
        for block in blocks:
            row: dict[str, Any] = {"input_ids": block.input_ids, "document": block.document, "words": block.words}
            if name != "train":
                block_ids, words = (torch.tensor([column]) for column in (block.input_ids, block.words))
                ids, labels = self._masked(block_ids, words, others, generator)
                while name == ANSWERS and (labels == -100).all() and (words >= 0).any():  # a short text's few words
                    ids, labels = self._masked(block_ids, words, others, generator)
                row |= {"input_ids": ids[0].tolist(), "labels": labels[0].tolist()}
            if name == ANSWERS:
                row["fill"] = [int(index == self._mask_id) for index in block.input_ids]
                if any(row["fill"]):  # these masks are the question: nothing else is hidden
                    row |= {"input_ids": block.input_ids, "labels": [-100] * len(block.input_ids)}
            yield row

    def _masked(
        self, ids: torch.Tensor, words: torch.Tensor, others: Any, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from adapterlab.tasks.masking import mask

        share = self.options.mask_share
        return mask(ids, words, share=share, mask_id=self._mask_id, others=others, generator=generator)

    def reading(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Where documents are kept apart, each is read as if it stood alone: positions begin anew."""
        if not self.apart:
            return super().reading(model, batch)
        from adapterlab.tasks.blocks import apart, positions

        document = batch["document"]
        return {"attention_mask": apart(document, model), "position_ids": positions(document, self._first)}

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss of the masked tokens. The head, as large as the vocabulary, reads only these."""
        from accelerate.utils import extract_model_from_parallel

        from adapterlab.tasks.blocks import losses_by_row
        from adapterlab.tasks.masking import Pick, offers

        ids, labels, fill = batch["input_ids"], batch.get("labels"), batch.get("fill")
        if labels is None:
            ids, labels = self._masked(ids, batch["words"], self._others)
        looked_at = labels != -100 if fill is None else (labels != -100) | (fill == 1)
        inner = extract_model_from_parallel(model)
        hook = inner.base_model.register_forward_hook(Pick(looked_at))
        try:
            outputs = model(input_ids=ids, **self.reading(inner, batch))
        finally:
            hook.remove()
        logits = outputs.logits if "logits" in outputs else outputs.prediction_logits
        logits, rows = logits[0], looked_at.nonzero()[:, 0]
        true = labels[looked_at]
        known = true != -100
        losses, counts = losses_by_row(logits[known], true[known], rows[known], len(ids), self.pieces_of)
        more, told = self.beside(outputs, batch)
        told = {"losses": losses, "counts": counts, **told}
        if fill is not None:
            told |= offers(logits, rows, fill[looked_at] == 1, len(ids))
        return losses.sum() / counts.sum().clamp(min=1) + more, told

    def beside(self, outputs: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what else is learned of a batch: a loss to add, and what is kept of the outputs."""
        return 0.0, {}

    def numbers(self, outputs: Any) -> tuple[Any, ...]:
        """See `Task.numbers`: the losses."""
        return (outputs[0] if isinstance(outputs, tuple) else outputs,)

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep each row's loss and its number of masked tokens; where masks were given, what was offered for them."""
        return tuple(outputs.values())

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Fill the masks that a text has; of one that has none, say how probable its words are."""
        owners = list(seen.encoded["_row"])
        answers: list[dict[str, Any]] = []
        for row, text in enumerate(seen.rows["text"]):
            own = [place for place, owner in enumerate(owners) if owner == row]
            losses, counts, *offers = ([part[place] for place in own] for part in seen.outputs)
            choices = [self._choice(*pair) for block in zip(*offers, strict=True) for pair in zip(*block, strict=True)]
            choices = [choice for choice in choices if choice]
            for choice in choices:
                text = text.replace(self._tokenizer.mask_token, choice[0]["token"], 1)
            answer = {"perplexity": perplexity(losses, counts) if sum(counts) else None}
            answers.append(answer | {"filled": text if choices else None, "choices": choices})
        return answers

    def _choice(self, tokens: Any, scores: Any) -> list[dict[str, Any]]:
        return [
            {"token": self._tokenizer.decode([int(token)]).strip(), "score": float(score)}
            for token, score in zip(tokens, scores, strict=True)
            if score >= 0
        ]


def _ordinary(tokenizer: Any) -> list[int]:
    """Return the ids of all tokens that aren't special."""
    special = set(tokenizer.all_special_ids)
    return [index for index in range(len(tokenizer)) if index not in special]
