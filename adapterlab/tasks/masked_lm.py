"""Masked language modelling: BERT's own training, continued on raw text; on request with its task on sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from adapterlab.data.corpora import Corpus
from adapterlab.errors import BackboneError, ConfigError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.corpus import ANSWERS, OF_GENERAL
from adapterlab.tasks.exchange import Evidence, Predictions
from adapterlab.tasks.masked_words import MaskedWords, MaskedWordsOptions
from adapterlab.tasks.metrics import compute
from adapterlab.tasks.metrics_language import SENTENCE_ACCURACY
from adapterlab.tasks.packing import Pieces
from adapterlab.tasks.sentence_pairs import Halver, Pairer, join_sentences, split_sentences

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from datasets import Dataset


class MaskedOptions(MaskedWordsOptions):
    """Options of masked language modelling."""

    sentences: Literal["none", "next", "order"] = Field(
        "none",
        description="Tell right pairs of segments from wrong ones, too. next: the second one follows, or is of another "
        "document (BERT). order: it follows, or the two are swapped (ALBERT).",
    )


@register_task("masked_lm", "mlm")
class MaskedLM(MaskedWords):
    """Learns to find masked words; and if `sentences` asks for it, whether two segments of text belong together.

    Then a block is one pair, and both losses are added. In training each pass draws anew whether a row is read right
    or wrong; of held-out rows every second one is wrong, always the same.
    """

    summary = "raw text, for BERT and its kin: masked words are found (continued pretraining)"
    extra_inputs = (*MaskedWords.extra_inputs, "wrong", "wrong_ids", "wrong_document", "wrong_words")
    Options: ClassVar[type[MaskedOptions]] = MaskedOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.paired = self.options.sentences != "none"
        if not self.paired and SENTENCE_ACCURACY in self.metrics:
            raise ConfigError(f"task.metrics: {SENTENCE_ACCURACY} needs pairs. Set task.sentences to next or order.")
        if self.paired and self.options.borders is not None:
            raise ConfigError(
                f"task.borders: with task.sentences={self.options.sentences} a block is one pair of segments, which "
                "see each other. Leave the option out."
            )
        if self.paired:
            self.auto_class = "AutoModelForPreTraining"

    @classmethod
    def usual_metrics(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """With pairs, how many are told right from wrong is measured too."""
        return (*cls.default_metrics, *([SENTENCE_ACCURACY] if options.get("sentences") in ("next", "order") else []))

    def model_kwargs(self) -> dict[str, Any]:
        """ALBERT's head for sentences is as wide as the config has labels."""
        return {"num_labels": 2} if self.paired else {}

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Refuse a model without a head for sentences, if it needs one."""
        if self.paired:
            from adapterlab.tasks.sentence_head import check_head

            check_head(model)
        super().prepare(model, tokenizer)

    def _settle_borders(self, model: Any) -> None:
        if not self.paired:
            super()._settle_borders(model)

    def packer(self, tokenizer: Any, size: int, name: str) -> Any:
        """Return what makes blocks of documents, or pairs of their sentences."""
        if not self.paired:
            return super().packer(tokenizer, size, name)
        import torch

        head, tail = self.frame(tokenizer)
        inner, both = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a", "a")
        middle = both[len(head) + len(inner) : len(both) - len(inner) - len(tail)]
        if not middle:
            raise BackboneError(
                f"task.sentences: the tokenizer of '{tokenizer.name_or_path}' puts nothing between two texts, so they "
                "can't be told apart. Take the tokenizer that the backbone was pretrained with."
            )
        kind, seed = (Halver, 0) if name == ANSWERS else (Pairer, torch.initial_seed() if name == "train" else 0)
        return kind(self.options.sentences, size, (head, middle, tail), seed % 2**32)

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = ANSWERS) -> Dataset:
        """Make blocks; where sentences of other documents are taken, documents are shuffled first."""
        if self.options.sentences == "next" and name != ANSWERS and not isinstance(dataset, Corpus):
            dataset = dataset.shuffle(seed=0)
        return super().encode(dataset, tokenizer, max_length, name=name)

    def pieces(self, texts: list[str], tokenizer: Any) -> list[Pieces]:
        """Tokenise; and tell where sentences end, if that matters."""
        if not self.paired:
            return super().pieces(texts, tokenizer)
        split = [split_sentences(text) for text in texts]
        every = [sentence for sentences in split for sentence in sentences]
        read = iter(super().pieces(every, tokenizer) if every else [])
        return [join_sentences([next(read) for _ in sentences]) for sentences in split]

    def columns_of(self, blocks: Iterable[Any], tokenizer: Any, name: str) -> Iterator[dict[str, Any]]:
        """Pairs to train on keep their wrong ones beside them; of held-out ones one of the two is taken."""
        if not self.paired:
            yield from super().columns_of(blocks, tokenizer, name)
            return
        chosen: dict[str, Any] = {}

        def choose() -> Iterator[Any]:
            draw, turn = np.random.default_rng(0), 1
            for number, pair in enumerate(blocks):
                chosen.clear()
                if name == "train":
                    wrong = pair.wrong
                    chosen.update(wrong_ids=wrong.input_ids, wrong_document=wrong.document, wrong_words=wrong.words)
                    yield pair
                    continue
                turn = 1 - turn if number % 2 else int(draw.integers(2))  # of two in a row, one is wrong
                chosen["wrong"] = turn if pair.wrong else 0 if max(pair.document) else -100
                yield pair.wrong if pair.wrong and turn else pair

        for row in super().columns_of(choose(), tokenizer, name):
            yield row | chosen

    def reading(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Of pairs, the model is told which segment a token is of."""
        if not self.paired:
            return super().reading(model, batch)
        from adapterlab.tasks.sentence_head import reading

        return reading(model, batch)

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss of the masked tokens, and of the pairs."""
        if self.paired:
            from adapterlab.tasks.sentence_head import arranged

            batch = arranged(batch)
        return super().forward(model, batch, items)

    def beside(self, outputs: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the loss of the pairs, and what was thought of them."""
        if not self.paired:
            return super().beside(outputs, batch)
        from adapterlab.tasks.sentence_head import sentence_logits, sentence_loss

        logits = sentence_logits(outputs)
        return sentence_loss(logits, batch["wrong"]), {"sentences": logits.float().softmax(-1)}

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Return perplexities; and for pairs, how many of the domain's are told right from wrong."""
        measured = super().measure(seen)
        if SENTENCE_ACCURACY in self.metrics and len(seen.outputs) > 2:
            own, wrong = _of_domain(seen.encoded), np.asarray(seen.encoded["wrong"])
            measured |= compute([SENTENCE_ACCURACY], np.asarray(seen.outputs[2]).argmax(1)[own], wrong[own])
        return measured

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """For pairs, guessing is right in half of them."""
        found = super().baselines(evidence)
        if SENTENCE_ACCURACY not in self.metrics:
            return found
        rows = evidence.encoded(evidence.split)
        share = float(np.asarray(rows["wrong"])[_of_domain(rows)].mean())
        return {"majority class": {SENTENCE_ACCURACY: max(share, 1 - share)}} | found

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Fill masks; of a text of several sentences, say how probable it is that its halves belong together."""
        if not self.paired:
            return super().decode(seen)
        losses, counts, thought, *offers = seen.outputs
        answers = super().decode(replace(seen, outputs=(losses, counts, *offers)))
        right: list[list[float]] = [[] for _ in answers]
        for owner, wrong, (probability, _) in zip(seen.encoded["_row"], seen.encoded["wrong"], thought, strict=True):
            if wrong == 0:  # of one sentence nothing can be said
                right[owner].append(float(probability))
        return [
            {**answer, "coherence": sum(own) / len(own) if own else None}
            for answer, own in zip(answers, right, strict=True)
        ]


def _of_domain(encoded: Dataset) -> Any:
    """Return a mask of the rows that aren't of the general text."""
    if OF_GENERAL not in encoded.column_names:
        return np.ones(len(encoded), dtype=bool)
    return ~np.asarray(encoded[OF_GENERAL], dtype=bool)
